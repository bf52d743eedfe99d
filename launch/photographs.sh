#!/usr/bin/env bash
# Real photographs through both stages on a CPU, with one table beside baselines, OUT/table.md (docs/photographs.md):
# cells under the microscope (BCCD), photographs with boxes (coco128) and with captions (1,000 of Flickr8k).
#   DATA=DIR launch/photographs.sh [key.path=value ...]      (words for all runs; run again to go on)
# DATA: a folder (default: this one) with bccd/ (VOC), coco128/ (YOLO), flickr8k_1000/ (captions.txt, images/) and
# roberta_tokenizer/ (vocab.json, merges.txt); BCCD, COCO128, FLICKR8K, VOCABULARY: those folders, where they lie apart.
# SHAPES: the run of launch/demo.sh to start from. OUT: folder of the runs. PARTS, STARTS, SEEDS: what to do, from what,
# how often. LIMIT: images read.
source "$(dirname "$0")/common.sh"

at() { [[ $1 == /* ]] && echo "$1" || echo "$caller/$1"; }
data=$(at "${DATA:-.}") shapes=$(at "${SHAPES:-$PWD/runs/demo}") out=$(at "${OUT:-$PWD/runs/photographs}")
parts=${PARTS:-cells objects pairs captions} starts=${STARTS:-nothing shapes} seeds=${SEEDS:-0 1 2}
limit=${LIMIT:+--limit $LIMIT}
# What training frees stays with the process: on a CPU a fifth of the time went into giving memory back to the system.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=68719476736 MALLOC_TOP_PAD_=268435456
mkdir -p "$out/raw"
shards() { [[ -f $out/shards/$1/train/dataset.json ]] || python -m fiber.cli.main shards "${@:2}" $limit --out "$out/shards/$1"; }
sets() { printf '[{path: %s, field: %s}]' "$out/shards/$1" "$2"; }
figures() { grep '^{' >"$1.new" && mv "$1.new" "$1"; } # whole or absent
# train STAGE CONFIG NAME SET FIELD key.path=value ...: a run, then its weights on SET, in OUT/NAME/test.json, asked
# with the words of `asked` too
asked=()
train() {
  local stage=launch/$1.sh config=configs/$2.yaml run=$out/$3 test
  test=$(sets "$4" "$5")
  shift 5
  "$stage" "$config" output="$run" "$@"
  [[ -s $run/test.json ]] || "$stage" "$config" --mode eval output="$run" "$@" "${asked[@]}" eval.data="$test" |
    figures "$run/test.json"
}

cells() { # cells under the microscope: published split; the same schedule from nothing beside
  printf 'RBC = red blood cell\nWBC = white blood cell\nPlatelets = platelet\n' >"$out/raw/cells.txt"
  shards bccd boxes "$(at "${BCCD:-$data/bccd}")" --classes "$out/raw/cells.txt"
  # Many updates of few images: with the same images in batches of 8 less is learned. First smaller, which is faster.
  local words=(tokenizer="$shapes/tokenizer" max_text=48 train.ema=0.995 train.best=ap regions.classes=all
    regions.flip=0.5 regions.test_side=320 regions.max_side=480 data.train="$(sets bccd/train boxes)"
    eval.data="$(sets bccd/val boxes)" eval.batch=8 train.global_batch=4 train.micro_batch=$((4 / ${RANKS:-2})))
  local small=(optim.lr=1e-3 regions.short_sides=[256,288,320] eval.every=450 train.steps=1800 train.save_every=450)
  local large=(optim.lr=7e-4 regions.short_sides=[288,320,352] eval.every=500 train.steps=1000 train.save_every=500)
  [[ -s $out/bccd_zero_shot.json ]] ||
    launch/stage2_fine.sh configs/stage2/shapes_detect.yaml --mode eval output="$out/bccd_zero_shot" "${words[@]}" \
      "${small[@]}" init_from="$shapes/stage2" eval.data="$(sets bccd/test boxes)" "$@" | figures "$out/bccd_zero_shot.json"
  # On test as it is and mirrored, at two of the trained sizes, voted: chosen on val.
  local start seed config from name asked=(eval.scales=[288,320])
  for start in $starts; do
    config=shapes_detect from=$shapes/stage2
    [[ $start != nothing ]] || config=shapes_tiny from=null
    for seed in $seeds; do
      name=bccd_${start}_$seed
      train stage2_fine "stage2/$config" "$name.small" bccd/test boxes "${words[@]}" "${small[@]}" init_from="$from" \
        seed="$seed" "$@"
      train stage2_fine "stage2/$config" "$name" bccd/test boxes "${words[@]}" "${large[@]}" \
        init_from="$out/$name.small" seed="$seed" "$@"
    done
  done
  python tools/visualize.py "$out/$name" --shards "$out/shards/bccd/test" --field boxes --count 10 --threshold 0.5 \
    --out "$out/bccd.png"
}

objects() { # photographs with objects of 71 classes: learned by heart, and what that is worth on others
  shards coco128 boxes "$(at "${COCO128:-$data/coco128}")"
  # A vocabulary of the class names: RoBERTa's 50,265 rows, nearly all of them idle, cost a fifth of the time.
  [[ -f $out/names/tokenizer.json ]] || python - "$out/shards/coco128/train" "$out/names" <<'PY'
import sys

from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shards import ShardSet

names = [category["name"] for category in ShardSet(sys.argv[1]).categories]
train_bpe([text for name in names for text in (name, f". {name}. {name}.") * 2], 1000, sys.argv[2])
PY
  # All 80 classes in one order, which is how it is asked: each has its place in the caption. First small, which is
  # fast, then large enough for small things. A head of one block does, and one image at a time pads nothing.
  local words=(tokenizer="$out/names" max_text=224 train.ema=0.98 optim.gate_multiplier=5 optim.warmup=0.03
    detector.head_blocks=1 regions.classes=all regions.chunk_classes=80 regions.flip=0.0 regions.figures=0
    data.train="$(sets coco128/train boxes)" eval.data="$(sets coco128/train boxes)" eval.batch=8
    train.global_batch=4 train.micro_batch=1 train.accumulation=$((4 / ${RANKS:-2})) train.zero_stage=0)
  local small=(init_from="$shapes/stage2" regions.short_sides=[192] regions.test_side=192 regions.max_side=320
    optim.lr=1e-3 eval.every=2400 train.steps=2400 train.save_every=1200)
  local large=(init_from="$out/coco128.small" regions.short_sides=[384] regions.test_side=384 regions.max_side=576
    regions.frozen_stages=1 optim.lr=7e-4 eval.every=2100 train.steps=4200 train.save_every=700)
  launch/stage2_fine.sh configs/stage2/shapes_detect.yaml output="$out/coco128.small" "${words[@]}" "${small[@]}" "$@"
  train stage2_fine stage2/shapes_detect coco128 coco128/val boxes "${words[@]}" "${large[@]}" "$@"
}

pairs() { # 200 image-text pairs learned by heart: contrast, matching and captions do their work on photographs
  awk -F, '!seen[$1]++' "$flickr/captions.txt" | sed -n 1,201p >"$out/raw/pairs.csv"
  shards pairs200 pairs "$out/raw/pairs.csv" --images "$flickr/images"
  local words=(tokenizer="$out/tokenizer" image_size=96 model.image.window=3 max_text=40 data.workers=1
    data.train="$(sets pairs200/train captions)" eval.data="$(sets pairs200/train captions)" eval.batch=50
    train.global_batch=50 train.micro_batch=$((50 / ${RANKS:-2})))
  train stage1_coarse stage1/shapes_long pairs200 pairs200/train captions "${words[@]}" init_from=null eval.every=100 \
    pretrain.itc_only_steps=100 pretrain.random_negative_steps=300 train.steps=400 "$@"
  train stage1_coarse stage1/shapes_caption pairs200_captions pairs200/train captions "${words[@]}" \
    init_from="$out/pairs200" caption.max_new_tokens=39 optim.lr=1e-3 train.steps=150 "$@"
}

captions() { # 800 photographs with five captions each, 200 others to retrieve: what so few pairs teach
  shards flickr8k pairs "$flickr" --val-share 0.2
  local words=(image_size=64 data.train="$(sets flickr8k/train captions)" eval.data="$(sets flickr8k/val captions)"
    eval.batch=100 eval.every=300 train.global_batch=32 train.micro_batch=$((32 / ${RANKS:-2})) train.save_every=300
    task=retrieval_itc train.best=null eval.rerank_k=0 finetune.augment=false model.text.dropout=0.1
    model.image.drop_path=0.1)
  local start seed
  for start in $starts; do
    # A model of shapes is very sure (its temperature is 0.014), and so are its mistakes at first: a small rate.
    local how=(init_from="$shapes/stage1" tokenizer="$shapes/tokenizer" max_text=80 optim.lr=2e-4 train.steps=1200)
    [[ $start != nothing ]] ||
      how=(init_from=null tokenizer="$out/tokenizer" max_text=40 optim.lr=1e-3 train.steps=1800)
    for seed in $seeds; do
      train stage1_coarse stage1/shapes_long "captions_${start}_$seed" flickr8k/val captions "${words[@]}" "${how[@]}" \
        seed="$seed" "$@"
    done
  done
}

flickr=$(at "${FLICKR8K:-$data/flickr8k_1000}") vocabulary=$(at "${VOCABULARY:-$data/roberta_tokenizer}")
[[ -f $out/tokenizer/tokenizer.json ]] || python - "$vocabulary" "$out/tokenizer" <<'PY'
import sys

from transformers import RobertaTokenizerFast

folder = sys.argv[1]
RobertaTokenizerFast(f"{folder}/vocab.json", f"{folder}/merges.txt", model_max_length=512).save_pretrained(sys.argv[2])
PY
for part in $parts; do "$part" "$@"; done
python tools/photographs_table.py "$out"
