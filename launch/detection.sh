#!/usr/bin/env bash
# Detection on COCO or LVIS: zero-shot figures, fine-tuning, the same figures after. Run again to go on.
#   launch/detection.sh coco_detection|lvis [key.path=value ...]
# Figures go to OUT/before.json and OUT/after.json. MODEL: a run or export at region level; OUT: folder of the run;
# SHARDS: folder with the set's splits. KEEP: shards of other detection sets whose figures are to be seen before and
# after, too: what fine-tuning forgets (tools/interpolate_weights.py finds models in between).
source "$(dirname "$0")/common.sh"

name=${1:?coco_detection or lvis}
shift
case $name in
  coco_detection) split=val ;;
  lvis) split=minival ;;
  *) echo "error: $name is not one of coco_detection, lvis" >&2 && exit 2 ;;
esac
out=${OUT:-runs/$name} shards=${SHARDS:-data/shards/$name}
sets=$(printf '{path: %s, field: boxes}, ' "$shards/$split" ${KEEP:-})
run=("configs/stage2/$name.yaml" output="$out" init_from="${MODEL:-runs/fiber_base_fine}" eval.data="[$sets]")
mkdir -p "$out"
[[ -s $out/before.json ]] || launch/stage2_fine.sh "${run[@]}" --mode eval "$@" | grep '^{' >"$out/before.json"
launch/stage2_fine.sh "${run[@]}" data.train.0.path="$shards/train" "$@"
launch/stage2_fine.sh "${run[@]}" --mode eval "$@" | grep '^{' | tee "$out/after.json"
