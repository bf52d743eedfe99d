#!/usr/bin/env bash
# Every image-level task on the shapes world, from the longer stage 1 and from nothing, and one table of both beside what
# can be had without looking (docs/shapes.md). Two ranks; an hour or so on two cores. Run again to go on.
#   launch/shapes_image_tasks.sh [key.path=value ...]
# STAGE1: the run to start from; SHAPES: the shards; OUT: where runs and table go; TASKS, STARTS: some of them only;
# PAIRS: pairs of images to train on; STEPS: steps of every task in place of its own number.
source "$(dirname "$0")/common.sh"

stage1=${STAGE1:-runs/shapes_stage1} shapes=${SHAPES:-runs/shapes} out=${OUT:-runs/shapes_tasks} pairs=${PAIRS:-8000}
unset STAGE1
draw() { python tools/make_shards.py shapes --world easy --variant pairs --workers 2 "$@" | tail -n 1; }
draw --split train --limit "$pairs" --out "$shapes/pairs_train"
draw --split val --limit $((pairs / 20)) --out "$shapes/pairs_val"
draw --split test --limit $((pairs / 8)) --out "$shapes/pairs_test"

sizes=$(python -c 'import json, sys; print("model=" + json.dumps(json.load(open(sys.argv[1]))["model"]))' \
  "$stage1/export/config.json")
shorter=()
if [[ -n ${STEPS:-} ]]; then shorter=("train.steps=$STEPS" "train.save_every=$STEPS" "eval.every=$STEPS"); fi


paths=(tokenizer="$shapes/tokenizer" "$sizes")
run() { # task, script, prefix of the shards, key.path=value ...
  local task=$1 script=$2 set=$shapes/$3 start init words
  shift 3
  for start in ${STARTS:-stage1 scratch}; do
    init=$([[ $start == stage1 ]] && echo "$stage1" || echo null)
    words=("${paths[@]}" data.train.0.path="${set}train" eval.data.0.path="${set}val" "${shorter[@]}" "$@")
    mkdir -p "$out/${task}_$start"
    STAGE1=$init OUT=$out/${task}_$start TEST=${set}test launch/"$script" \
      "configs/stage1/shapes_$task.yaml" "${words[@]}" | grep '^{"step"' >"$out/${task}_$start/test.json.new"
    mv "$out/${task}_$start/test.json.new" "$out/${task}_$start/test.json" # whole or absent
    cat "$out/${task}_$start/test.json"
  done
}
for task in ${TASKS:-vqa nlvr2 snli_ve retrieval_itc retrieval_itm caption}; do
  case $task in
    nlvr2) run nlvr2 nlvr2.sh pairs_ "$@" ;;
    retrieval_*) run "$task" retrieval.sh "" "$@" ;;
    caption) GOLD="optim.lr=1e-4 train.steps=150" CIDER="optim.lr=5e-5 train.steps=80" run caption caption.sh "" "$@" ;;
    *) run "$task" "$task.sh" "" "$@" ;;
  esac
done
python tools/image_tasks_table.py "$out" | tee "$out/table.md"
