#!/usr/bin/env bash
# Visual entailment (SNLI-VE): fine-tune, then evaluate the best weights.
#   launch/snli_ve.sh [CONFIG] [key.path=value ...]        CONFIG: configs/stage1/snli_ve.yaml; run again to go on
#   STAGE1: run or export to start from; OUT: run directory; TEST: shards of the last evaluation,
#   such as data/shards/snli_ve/test
source "$(dirname "$0")/common.sh"
finetune configs/stage1/snli_ve.yaml "$@"
