#!/usr/bin/env bash
# Captioning: cross-entropy, GOLD, CIDEr-D, each from the model before; then the test set by the last.
#   launch/caption.sh [CONFIG] [key.path=value ...]        run again to go on
#     CONFIG: one for all three in place of configs/stage1/caption_{mle,gold,cider}.yaml, such as shapes_caption.yaml
#   STAGE1: run or export to start from; TEST: shards of the last evaluation, such as data/shards/coco_captions/test;
#   OUT: folder of the three runs; MLE, GOLD, CIDER: key.path=value words for one objective, the others hold over them
source "$(dirname "$0")/common.sh"

config="" out=${OUT:-runs/coco_caption} start=${STAGE1:-runs/fiber_base_coarse}
if [[ ${1:-} == *.yaml ]]; then
  config=$1
  shift
fi
for objective in mle gold cider; do
  own=${objective^^}
  run=("${config:-configs/stage1/caption_$objective.yaml}" "output=$out/$objective" "init_from=$start")
  # shellcheck disable=SC2206 # the words of an objective are several
  run+=("caption.objective=$objective" ${!own:-} "$@")
  launch/stage1_coarse.sh "${run[@]}"
  start=$out/$objective
done
launch/stage1_coarse.sh "${run[0]}" --mode eval "${run[@]:1}" ${TEST:+"eval.data.0.path=$TEST"}
