#!/usr/bin/env bash
# Referring expressions: fine-tune on one of the sets, then evaluate each of its splits. Run again to go on.
#   launch/refcoco.sh refcoco|refcoco_plus|refcocog [key.path=value ...]
# MODEL: a run or export at region level; OUT: folder of the run; SHARDS: folder with the set's splits.
source "$(dirname "$0")/common.sh"

name=${1:?refcoco, refcoco_plus or refcocog}
shift
case $name in
  refcoco) folder=refcoco_unc splits="val testA testB" ;;
  refcoco_plus) folder=refcocoplus_unc splits="val testA testB" ;;
  refcocog) folder=refcocog_umd splits="val test" ;;
  *) echo "error: $name is not one of refcoco, refcoco_plus, refcocog" >&2 && exit 2 ;;
esac
shards=${SHARDS:-data/shards/$folder}
run=("configs/stage2/$name.yaml" output="${OUT:-runs/$name}" init_from="${MODEL:-runs/fiber_base_fine_refexp_clean}")
launch/stage2_fine.sh "${run[@]}" data.train.0.path="$shards/train" eval.data.0.path="$shards/val" "$@"
sets=$(printf "{path: $shards/%s, field: expressions}, " $splits)
launch/stage2_fine.sh "${run[@]}" --mode eval eval.data="[$sets]" "$@"
