#!/usr/bin/env bash
# Questions (VQAv2): fine-tune, then evaluate the best weights; RUN/predictions/vqa_submission.json is the server's file.
#   launch/vqa.sh [CONFIG] [key.path=value ...]            CONFIG: configs/stage1/vqa.yaml; run again to go on
#   STAGE1: run or export to start from; OUT: run directory; TEST: shards of the last evaluation,
#   such as data/shards/vqav2/test
source "$(dirname "$0")/common.sh"
finetune configs/stage1/vqa.yaml "$@"
