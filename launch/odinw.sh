#!/usr/bin/env bash
# Detection sets of ODinW, or your own: zero-shot, K-shot and full fine-tuning, in any tuning mode. Run again to go on.
#   launch/odinw.sh SET ... [-- key.path=value ...]            then tools/odinw_table.py makes the table of the means
# SHARDS: folder with SET/{train,val}. SHOTS: which parts (default "0 1 3 5 10 full"; 0 is zero-shot). SEEDS: of the
# K-shot subsets (default "3 30 300", which are also those of ODinW's own few-shot files). MODES: tuning modes. MODEL: a
# run or export at region level. OUT: runs go to OUT/SET/{zero_shot,full_MODE,K_shot_MODE_SEED}.
source "$(dirname "$0")/common.sh"

sets=()
while (($#)) && [[ $1 != -- ]]; do sets+=("$1") && shift; done
(($#)) && shift
[[ ${#sets[@]} -gt 0 ]] || { sed -n '2,7p' "$0" >&2 && exit 2; }
folder=${SHARDS:-data/shards/odinw} out=${OUT:-runs/odinw}
overrides=("$@")
batch=$(python -c "import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))['train']['global_batch'])" configs/stage2/odinw.yaml)
for word in "$@"; do [[ $word == train.global_batch=* ]] && batch=${word#*=}; done

stage2() { # output folder, more words
  local output=$1
  shift
  launch/stage2_fine.sh "${CONFIG:-configs/stage2/odinw.yaml}" output="$output" \
    init_from="${MODEL:-runs/fiber_base_fine}" "$@" "${overrides[@]}"
}
train() { # set, name of the run, training shards, copies of them per epoch, tuning mode
  local epoch
  epoch=$(python -c "import json, sys; print(max(json.load(open(sys.argv[1]))['samples'] * $4 // $batch, 1))" "$3/dataset.json")
  stage2 "$out/$1/$2" data.train.0.path="$3" eval.data.0.path="$folder/$1/val" eval.every="$epoch" \
    train.steps=$((200 * epoch)) tuning.mode="$5"
}
declare -A copies=([1]=8 [3]=4 [5]=2 [10]=1)
for set in "${sets[@]}"; do
  for shots in ${SHOTS:-0 1 3 5 10 full}; do
    if [[ $shots == 0 ]]; then
      mkdir -p "$out/$set/zero_shot"
      stage2 "$out/$set/zero_shot" --mode eval eval.data.0.path="$folder/$set/val" |
        grep '^{' >"$out/$set/zero_shot/figures.json"
      continue
    fi
    for mode in ${MODES:-full}; do
      if [[ $shots == full ]]; then
        train "$set" "full_$mode" "$folder/$set/train" 1 "$mode"
        continue
      fi
      for seed in ${SEEDS:-3 30 300}; do
        few=$out/$set/shards/${shots}_$seed
        [[ -f $few/dataset.json ]] || python tools/few_shot.py "$folder/$set/train" --shots "$shots" --seed "$seed" --out "$few"
        train "$set" "${shots}_shot_${mode}_$seed" "$few" "${copies[$shots]}" "$mode"
      done
    done
  done
done
