#!/usr/bin/env bash
# Does stage 1 pay? The same stage-2 schedule on the easy shapes world from the longer stage 1 and from nothing, three
# seeds each; table and plot of grounding and detection along the schedule (docs/shapes.md). Run again to go on.
#   launch/coarse_to_fine.sh [key.path=value ...]       STAGE1: the run to start from; SHAPES: the shards; SEEDS
set -euo pipefail
cd "$(dirname "$0")/.."
[[ -d .venv ]] && source .venv/bin/activate

shapes=${SHAPES:-runs/shapes} stage1=${STAGE1:-runs/shapes_stage1} out=${OUT:-runs/coarse_to_fine}
coarse=() scratch=()
for seed in ${SEEDS:-0 1 2}; do
  for start in coarse scratch; do
    init=$([[ $start == coarse ]] && echo "$stage1" || echo null)
    launch/stage2_fine.sh configs/stage2/shapes_long.yaml output="$out/${start}_$seed" seed="$seed" init_from="$init" \
      tokenizer="$shapes/tokenizer" data.train.0.path="$shapes/train" data.train.1.path="$shapes/train" \
      eval.data.0.path="$shapes/val" eval.data.1.path="$shapes/val" train.steps=800 eval.every=100 "$@"
  done
  coarse+=("$out/coarse_$seed") scratch+=("$out/scratch_$seed")
done
join() { local IFS=,; echo "$*"; }
python tools/compare_runs.py --out "$out/coarse_to_fine.png" --metric grounding_r1:class_agnostic_r1 --metric ap50 \
  "from stage 1=$(join "${coarse[@]}")" "from nothing=$(join "${scratch[@]}")" | grep "^|" | tee "$out/table.md"
