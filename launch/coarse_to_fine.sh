#!/usr/bin/env bash
# Does stage 1 pay, and how much of it? The same stage-2 schedule on the easy shapes world from nothing, from a short
# stage 1 and from the longer one, three seeds each; table and plot of grounding and detection along the schedule
# (docs/shapes.md). Run again to go on.
#   launch/coarse_to_fine.sh [key.path=value ...]     of stage 2
# STAGE1: the longer run to start from; SHORT: steps of the short one, COARSE: key.path=value words for it; SHAPES: the
# shards; SEEDS; OUT
source "$(dirname "$0")/common.sh"

shapes=${SHAPES:-runs/shapes} stage1=${STAGE1:-runs/shapes_stage1} out=${OUT:-runs/coarse_to_fine} short=${SHORT:-300}
# shellcheck disable=SC2086 # the words are several
launch/stage1_coarse.sh configs/stage1/shapes_long.yaml output="$out/stage1_short" init_from=null \
  tokenizer="$shapes/tokenizer" \
  data.train.0.path="$shapes/train" data.train.1.path="$shapes/arranged" data.train.2.path="$shapes/paired" \
  eval.data=[] train.steps="$short" pretrain.itc_only_steps=$((short / 4)) pretrain.random_negative_steps=$((short * 3 / 4)) \
  ${COARSE:-}

starts=(nothing short longer)
declare -A init=([nothing]=null [short]="$out/stage1_short" [longer]="$stage1") runs=()
for seed in ${SEEDS:-0 1 2}; do
  for start in "${starts[@]}"; do
    launch/stage2_fine.sh configs/stage2/shapes_long.yaml output="$out/${start}_$seed" seed="$seed" \
      init_from="${init[$start]}" tokenizer="$shapes/tokenizer" \
      data.train.0.path="$shapes/train" data.train.1.path="$shapes/train" \
      eval.data.0.path="$shapes/val" eval.data.1.path="$shapes/val" train.steps=200 eval.every=100 "$@"
    runs[$start]+="${runs[$start]:+,}$out/${start}_$seed"
  done
done
python tools/compare_runs.py --out "$out/coarse_to_fine.png" --metric grounding_r1:class_agnostic_r1 --metric ap50 \
  "from nothing=${runs[nothing]}" "after $short steps of stage 1=${runs[short]}" \
  "after the longer stage 1=${runs[longer]}" | grep "^|" | tee "$out/table.md"
