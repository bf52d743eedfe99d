#!/usr/bin/env bash
# Sentences about two images (NLVR2): fine-tune, then evaluate the best weights.
#   launch/nlvr2.sh [CONFIG] [key.path=value ...]          CONFIG: configs/stage1/nlvr2.yaml; run again to go on
#   STAGE1: run or export to start from; OUT: run directory; TEST: shards of the last evaluation,
#   such as data/shards/nlvr2/test1
source "$(dirname "$0")/common.sh"
finetune configs/stage1/nlvr2.yaml "$@"
