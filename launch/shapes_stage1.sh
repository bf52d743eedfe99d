#!/usr/bin/env bash
# The longer stage 1 on the shapes world (docs/shapes.md): shards and tokenizer, training, figures and curves.
#   launch/shapes_stage1.sh [key.path=value ...]      run again to go on; OUT: another folder than runs/shapes
source "$(dirname "$0")/common.sh"

out=${OUT:-runs/shapes} run=${RUN:-runs/shapes_stage1}
scenes=${SCENES:-20000} held_out=${HELD_OUT:-1000}
shards() { python tools/make_shards.py shapes --captions ordered --workers 2 --world "$@" | tail -n 1; }
shards easy --split train --limit "$scenes" --out "$out/train"
shards arranged --split train --limit $((scenes * 2 / 5)) --out "$out/arranged"
shards arranged --split test --limit $((held_out * 3 / 10)) --out "$out/arranged_test"
shards paired --split train --limit $((scenes / 2)) --shard-samples 500 --out "$out/paired" # a family of scenes per shard
shards paired --split test --limit $((held_out * 3 / 10)) --out "$out/paired_test"
shards easy --split val --limit $((held_out * 3 / 10)) --out "$out/val"
shards easy --split test --limit "$held_out" --out "$out/test"
shards easy --split compositional --limit $((held_out / 2)) --out "$out/compositional"
[[ -f $out/tokenizer/tokenizer.json ]] || python tools/train_tokenizer.py "$out/train" --out "$out/tokenizer"

# First what order means, the contrastive loss alone on scenes that nothing but order tells apart: few kinds in a line,
# then all kinds anywhere; then everything.
alone=(tokenizer="$out/tokenizer" eval.data=[] pretrain.itc_only_steps=600 pretrain.random_negative_steps=600)
launch/stage1_coarse.sh configs/stage1/shapes_long.yaml output="${run}_order" init_from=null "${alone[@]}" \
  data.train="[{path: $out/arranged}]" train.steps=400 "$@"
launch/stage1_coarse.sh configs/stage1/shapes_long.yaml output="${run}_places" init_from="${run}_order" "${alone[@]}" \
  data.train="[{path: $out/arranged, weight: 1}, {path: $out/paired, weight: 4}]" train.steps=600 "$@"
launch/stage1_coarse.sh configs/stage1/shapes_long.yaml output="$run" init_from="${run}_places" \
  tokenizer="$out/tokenizer" data.train.0.path="$out/train" data.train.1.path="$out/arranged" \
  data.train.2.path="$out/paired" eval.data.0.path="$out/val" "$@"
for split in test compositional arranged_test paired_test; do
  python tools/shapes_report.py "$run" --shards "$out/$split" --out "$run/figures/$split" | grep -v '^{'
done
