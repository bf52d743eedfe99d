#!/usr/bin/env bash
# Image classification from a folder of class folders: fine-tune, then evaluate the best weights.
#   launch/classification.sh [CONFIG] [key.path=value ...]        CONFIG: configs/stage1/classification.yaml; run again
#   to go on. STAGE1: run or export to start from; OUT: run directory; TEST: shards of the last evaluation
source "$(dirname "$0")/common.sh"
finetune configs/stage1/classification.yaml "$@"
