#!/usr/bin/env bash
# The longer stage 2 on the shapes world (docs/shapes.md): the easy world, then the hard one, both from the longer
# stage 1 (launch/shapes_stage1.sh). Run again to go on after an interruption.
#   launch/shapes_stage2.sh [key.path=value ...]
# SHAPES, HARD: folders of the shards; STAGE1: the run to start from; OUT: folder of the runs; SCENES, HELD_OUT: sizes
# of the hard world.
source "$(dirname "$0")/common.sh"

easy=${SHAPES:-runs/shapes} hard=${HARD:-runs/shapes_hard} stage1=${STAGE1:-runs/shapes_stage1} out=${OUT:-runs}
scenes=${SCENES:-20000} held_out=${HELD_OUT:-1000}
shards() { python tools/make_shards.py shapes --world hard --workers 2 "$@" | tail -n 1; }
shards --split train --limit "$scenes" --out "$hard/train"
shards --split val --limit $((held_out * 3 / 10)) --out "$hard/val"
shards --split test --limit "$held_out" --out "$hard/test"

start=(tokenizer="$easy/tokenizer" init_from="$stage1")
both() { echo "data.train.0.path=$1/train" "data.train.1.path=$1/train" "eval.data.0.path=$1/$2" "eval.data.1.path=$1/$2"; }
all() { echo "$(both "$@")" "data.train.2.path=$1/train" "eval.data.2.path=$1/$2"; }
run() { # config, output, paths of training, paths of the final evaluation, more overrides
  local config=configs/stage2/$1.yaml output=$out/$2 training=$3 final=$4
  shift 4
  # shellcheck disable=SC2086  # the paths are several words
  launch/stage2_fine.sh "$config" output="$output" "${start[@]}" $training "$@"
  # shellcheck disable=SC2086
  launch/stage2_fine.sh "$config" --mode eval output="$output" "${start[@]}" $final "$@" | grep '^{' >"$output/test.json"
  cat "$output/test.json"
}
run shapes_long shapes_stage2 "$(both "$easy" val)" "$(both "$easy" test)" "$@"
run shapes_hard shapes_stage2_hard "$(all "$hard" val)" "$(all "$hard" test)" "$@"
python tools/visualize.py "$out/shapes_stage2" --shards "$easy/test" --out "$out/shapes_stage2/figures/grounding.png"
python tools/visualize.py "$out/shapes_stage2_hard" --shards "$hard/test" --field expressions \
  --out "$out/shapes_stage2_hard/figures/expressions.png"
