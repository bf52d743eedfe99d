#!/usr/bin/env bash
# Detection sets of ODinW, or your own: zero-shot, K-shot and full fine-tuning, in any tuning mode. Run again to go on.
#   launch/odinw.sh SET ... [-- key.path=value ...]            then tools/odinw_table.py makes the table of the means
# SHARDS: folder with SET/{train,val} and SET/test. The weights are chosen on val and then evaluated on test; the table has
# both. SHOTS: which parts (default "0 1 3 5 10 full"; 0 is zero-shot). SEEDS: of the K-shot subsets (default "3 30 300").
# SET/train_K_SEED and SET/val_K_SEED, the published subsets, serve where they are; else train is cut, val stays whole, and
# the table says so. MODES: tuning modes. MODEL: a run or export at region level. CONFIG: in place of odinw.yaml (and of
# odinw_prompt.yaml). OUT: runs go to OUT/SET/{zero_shot,full_MODE,K_shot_MODE_SEED}.
source "$(dirname "$0")/common.sh"

sets=()
while (($#)) && [[ $1 != -- ]]; do sets+=("$1") && shift; done
(($#)) && shift
[[ ${#sets[@]} -gt 0 ]] || { sed -n '2,9p' "$0" >&2 && exit 2; }
folder=${SHARDS:-data/shards/odinw} out=${OUT:-runs/odinw}
overrides=("$@")
batch=$(python -c "import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))['train']['global_batch'])" configs/stage2/odinw.yaml)
for word in "$@"; do [[ $word == train.global_batch=* ]] && batch=${word#*=}; done

stage2() { # tuning mode, output folder, more words
  local mode=$1 output=$2 config=configs/stage2/odinw.yaml
  shift 2
  [[ $mode == prompt ]] && config=configs/stage2/odinw_prompt.yaml
  launch/stage2_fine.sh "${CONFIG:-$config}" output="$output" init_from="${MODEL:-runs/fiber_base_fine}" \
    tuning.mode="$mode" "$@" "${overrides[@]}"
}
score() { # tuning mode, output folder, set, split, file of the figures
  mkdir -p "$2"
  stage2 "$1" "$2" --mode eval eval.data.0.path="$folder/$3/$4" | grep '^{' >"$2/$5"
}
train() { # set, name of the run, training shards, copies of them per epoch, tuning mode, shards to choose on
  local epoch run=$out/$1/$2
  epoch=$(python -c "import json, sys; print(max(json.load(open(sys.argv[1]))['samples'] * $4 // $batch, 1))" "$3/dataset.json")
  stage2 "$5" "$run" data.train.0.path="$3" eval.data.0.path="$6" eval.every="$epoch" train.steps=$((200 * epoch))
  [[ ! -d $folder/$1/test ]] || score "$5" "$run" "$1" test test.json
}
declare -A copies=([1]=8 [3]=4 [5]=2 [10]=1)
for set in "${sets[@]}"; do
  for shots in ${SHOTS:-0 1 3 5 10 full}; do
    if [[ $shots == 0 ]]; then
      score full "$out/$set/zero_shot" "$set" val figures.json
      [[ ! -d $folder/$set/test ]] || score full "$out/$set/zero_shot" "$set" test test.json
      continue
    fi
    for mode in ${MODES:-full}; do
      if [[ $shots == full ]]; then
        train "$set" "full_$mode" "$folder/$set/train" 1 "$mode" "$folder/$set/val"
        continue
      fi
      for seed in ${SEEDS:-3 30 300}; do
        few=$folder/$set/train_${shots}_$seed choose=$folder/$set/val_${shots}_$seed
        [[ -d $choose ]] || choose=$folder/$set/val
        if [[ ! -d $few ]]; then
          few=$out/$set/shards/${shots}_$seed
          [[ -f $few/dataset.json ]] || python tools/few_shot.py "$folder/$set/train" --shots "$shots" --seed "$seed" --out "$few"
        fi
        train "$set" "${shots}_shot_${mode}_$seed" "$few" "${copies[$shots]}" "$mode" "$choose"
      done
    done
  done
done
