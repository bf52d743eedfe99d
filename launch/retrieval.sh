#!/usr/bin/env bash
# Image-text retrieval: fine-tune, then evaluate the best weights; RUN/predictions/ has the best hits of each query.
#   launch/retrieval.sh [CONFIG] [key.path=value ...]      run again to go on
#     CONFIG: configs/stage1/retrieval_{coco,flickr}_{itc,itm}.yaml (default: COCO by the dual encoder)
#   STAGE1: run or export to start from; OUT: run directory; TEST: shards of the last evaluation,
#   such as data/shards/coco_captions/test
source "$(dirname "$0")/common.sh"
finetune configs/stage1/retrieval_coco_itc.yaml "$@"
