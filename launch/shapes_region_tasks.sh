#!/usr/bin/env bash
# Every region-level task on the shapes world, from the longer stage 2 (launch/shapes_stage2.sh): grounding, referring
# expressions, detection of combinations never seen, long tail, and a few images of another world in every tuning
# mode. One table, OUT/table.md (docs/region_tasks.md). Run again to go on.
#   launch/shapes_region_tasks.sh [key.path=value ...]       (words for all runs)
# STAGE2: the run to start from; SHAPES: its shards and tokenizer; OUT: folder of the runs. STEPS: of the two larger
# fine-tunings; FEW_STEPS, SHOTS, SEEDS, MODES: of the few-shot runs; SCENES, HELD_OUT: how many images are drawn.
source "$(dirname "$0")/common.sh"

stage2=${STAGE2:-runs/shapes_stage2} shapes=${SHAPES:-runs/shapes} out=${OUT:-runs/shapes_regions}
steps=${STEPS:-400} few_steps=${FEW_STEPS:-300} scenes=${SCENES:-2000} held_out=${HELD_OUT:-200}
shots=${SHOTS:-1 3 5 10} seeds=${SEEDS:-0 1 2} modes=${MODES:-full frozen_towers lora linear prompt}
declare -A rate=([full]=1e-3 [frozen_towers]=1e-3 [lora]=2e-3 [linear]=2e-3 [prompt]=5e-3)
from=(init_from="$stage2" tokenizer="$shapes/tokenizer")
shards() { python tools/make_shards.py shapes --workers 2 "$@" | tail -n 1; }
sets() { local list; list=$(printf '{path: %s, field: %s}, ' "$@") && echo "[$list]"; }
figures() { grep '^{' >"$1.new" && mv "$1.new" "$1"; } # whole or absent

# Training images of the held-out combinations (another seed than the test images), and another world.
shards --world easy --split compositional --seed 1 --limit "$scenes" --out "$out/shards/compositional"
shards --world novel --split train --limit 400 --out "$out/shards/novel"
shards --world novel --split test --limit "$held_out" --out "$out/shards/novel_test"

known=("$shapes/compositional" boxes "$shapes/test" boxes) # unseen combinations, and what must not be forgotten
[[ -s $out/zero_shot.json ]] ||
  launch/stage2_fine.sh configs/stage2/shapes_detect.yaml --mode eval output="$out/zero_shot" "${from[@]}" max_text=64 \
    eval.data="$(sets "$shapes/test" captions "$shapes/test" expressions "${known[@]}")" "$@" | figures "$out/zero_shot.json"
launch/stage2_fine.sh configs/stage2/shapes_refer.yaml output="$out/refer" "${from[@]}" train.steps="$steps" \
  data.train.0.path="$shapes/train" eval.data="$(sets "$shapes/test" expressions)" "$@"
launch/stage2_fine.sh configs/stage2/shapes_detect.yaml output="$out/detect" "${from[@]}" train.steps="$steps" \
  data.train.0.path="$out/shards/compositional" eval.data="$(sets "${known[@]}")" "$@"

novel=("${from[@]}" eval.data="$(sets "$out/shards/novel_test" boxes)")
[[ -s $out/few_shot/zero_shot.json ]] || {
  mkdir -p "$out/few_shot"
  launch/stage2_fine.sh configs/stage2/shapes_few_shot.yaml --mode eval output="$out/few_shot/zero_shot" "${novel[@]}" \
    "$@" | figures "$out/few_shot/zero_shot.json"
}
for k in $shots; do
  for seed in $seeds; do
    few=$out/shards/novel_${k}_$seed
    [[ -f $few/dataset.json ]] || python tools/few_shot.py "$out/shards/novel" --shots "$k" --seed "$seed" --out "$few" >/dev/null
    for mode in $modes; do
      echo "output=$out/few_shot/${mode}_${k}_$seed seed=$seed tuning.mode=$mode optim.lr=${rate[$mode]} data.train.0.path=$few"
    done
  done
done >"$out/few_shot/runs.txt"
(start tools/train_many.py --config configs/stage2/shapes_few_shot.yaml --runs "$out/few_shot/runs.txt" \
  "${novel[@]}" train.steps="$few_steps" "$@")
python tools/region_report.py "$out" --shapes "$shapes" --out "$out/table.md"
