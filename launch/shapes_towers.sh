#!/usr/bin/env bash
# The towers that `make demo` begins with, as FIBER begins with a Swin and a RoBERTa that others have trained: both stages
# on the easy shapes world, stage 1 from nothing, longer than the demo's and on more scenes, of which only the two towers
# are kept. An hour and ten minutes of two cores, and the shards.
#   launch/shapes_towers.sh       OUT: another folder than runs/shapes_towers; run again to go on. SMALL=1: two steps
source "$(dirname "$0")/common.sh"

out=${OUT:-runs/shapes_towers} scenes=${SCENES:-20000} steps1=(train.steps=2400 train.micro_batch=32) steps2=(train.steps=1600)
if [[ -n ${SMALL:-} ]]; then
  steps1=(train.steps=2 train.global_batch=4 train.micro_batch=4 pretrain.itc_only_steps=0 pretrain.random_negative_steps=1)
  steps2=(train.steps=2 train.global_batch=4 train.micro_batch=$((4 / ${RANKS:-2})))
fi
[[ -f $out/shards/dataset.json ]] ||
  python tools/make_shards.py shapes --world easy --captions full --workers 2 --split train --limit "$scenes" --out "$out/shards"
[[ -f $out/tokenizer/tokenizer.json ]] || python tools/train_tokenizer.py "$out/shards" --out "$out/tokenizer"
paths=(eval.data=[] tokenizer="$out/tokenizer" data.train.0.path="$out/shards")
# One thread, as the package's were made: two round otherwise.
OMP_NUM_THREADS=1 RANKS=1 launch/stage1_coarse.sh configs/stage1/shapes_tiny.yaml output="$out/stage1" "${paths[@]}" "${steps1[@]}"
begun=$out/stage1
for part in 1 2; do # the rate falls to nothing, and once more
  launch/stage2_fine.sh configs/stage2/shapes_tiny.yaml output="$out/stage2.$part" init_from="$begun" "${paths[@]}" \
    data.train.1.path="$out/shards" "${steps2[@]}"
  begun=$out/stage2.$part
done
python tools/export_towers.py "$begun" "$out/towers"
