#!/usr/bin/env bash
# The towers that `make demo` begins with, as FIBER begins with a Swin and a RoBERTa that others have trained: a stage 1 from
# nothing on the easy shapes world, longer than the demo's and on more scenes, of which only the two towers are kept.
# 43 minutes of one core, and the shards.
#   launch/shapes_towers.sh [key.path=value ...]     OUT: another folder than runs/shapes_towers; run again to go on
source "$(dirname "$0")/common.sh"

out=${OUT:-runs/shapes_towers}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # as the package's were made: two threads round otherwise
[[ -f $out/shards/dataset.json ]] ||
  python tools/make_shards.py shapes --world easy --captions full --workers 2 --split train --limit "${SCENES:-20000}" --out "$out/shards"
[[ -f $out/tokenizer/tokenizer.json ]] || python tools/train_tokenizer.py "$out/shards" --out "$out/tokenizer"
RANKS=1 launch/stage1_coarse.sh configs/stage1/shapes_tiny.yaml output="$out/stage1" tokenizer="$out/tokenizer" eval.data=[] \
  data.train.0.path="$out/shards" train.micro_batch=32 train.steps=2400 "$@"
python tools/export_towers.py "$out/stage1" "$out/towers"
