#!/usr/bin/env bash
# The towers that `make demo` begins with, as FIBER begins with a Swin and a RoBERTa that others have trained: both stages
# on the easy shapes world, longer than the demo's and on more scenes, of which only the two towers are kept. An hour and a
# half of two cores, and the shards.
#   launch/shapes_towers.sh       OUT: another folder than runs/shapes_towers; run again to go on. SMALL=1: two steps
source "$(dirname "$0")/common.sh"

out=${OUT:-runs/shapes_towers} scenes=${SCENES:-20000}
steps1=(train.steps=2400) steps2=(train.steps=1600) again=(train.steps=600 pretrain.random_negative_steps=60) batch=32
if [[ -n ${SMALL:-} ]]; then
  batch=4 steps1=(train.steps=2 train.global_batch=4 pretrain.itc_only_steps=0 pretrain.random_negative_steps=1) again=("${steps1[@]}")
  steps2=(train.steps=2 train.global_batch=4 train.micro_batch=$((4 / ${RANKS:-2})))
fi
[[ -f $out/shards/dataset.json ]] ||
  python tools/make_shards.py shapes --world easy --captions full --workers 2 --split train --limit "$scenes" --out "$out/shards"
[[ -f $out/tokenizer/tokenizer.json ]] || python tools/train_tokenizer.py "$out/shards" --out "$out/tokenizer"
# One thread, as the package's were made: two round otherwise.
coarse() {
  OMP_NUM_THREADS=1 RANKS=1 launch/stage1_coarse.sh configs/stage1/shapes_tiny.yaml output="$out/$1" tokenizer="$out/tokenizer" \
    eval.data=[] data.train.0.path="$out/shards" train.micro_batch="$batch" "${@:2}"
}
fine() {
  launch/stage2_fine.sh configs/stage2/shapes_tiny.yaml output="$out/$1" tokenizer="$out/tokenizer" eval.data=[] \
    data.train.0.path="$out/shards" data.train.1.path="$out/shards" "${steps2[@]}" "${@:2}"
}
# towers RUN: its towers alone, as words for the next training, in `begun`
towers() {
  python tools/export_towers.py "$out/$1" "$out/$2"
  begun=(model.image.pretrained="$out/$2/image.safetensors" model.text.pretrained="$out/$2/text")
}
coarse stage1 "${steps1[@]}"
fine stage2.1 init_from="$out/stage1"
fine stage2.2 init_from="$out/stage2.1" # the rate falls to nothing, and once more
# What the fusion has learned is not kept. With its gates shut the towers learn to do without: each finds its part alone.
towers stage2.2 towers.fused
fine stage2.alone init_from=null optim.gate_multiplier=0 "${begun[@]}"
# And once more what the demo's stage 1 asks of them: whole images and captions, and to work with a fusion.
towers stage2.alone towers.alone
coarse stage1.again seed=5 train.zero_stage=0 optim.lr=5e-4 optim.head_multiplier=4 optim.cross_modal_multiplier=4 \
  pretrain.itc_only_steps=0 "${again[@]}" "${begun[@]}"
towers stage1.again towers
