#!/usr/bin/env bash
# The whole story in miniature, on two CPU cores in minutes: a procedural world becomes shards, stage 1 joins a small
# image tower and a small text tower and pre-trains them on image-text pairs, stage 2 goes on from it with boxes (2 ranks
# under DeepSpeed), both are evaluated on held-out scenes beside their baselines, and images are drawn.
#
#   make demo                     everything under runs/demo, from the beginning
#   START=nothing make demo       without the pre-trained towers (launch/shapes_towers.sh), which takes longer: docs/shapes.md
#   SEED=1 make demo              of other random numbers than 0; the scenes are the same
#   OUT=DIR SMALL=1 launch/demo.sh    a few steps of each part, as the test suite runs it
source "$(dirname "$0")/common.sh"

out=${OUT:-runs/demo}
scenes=6000 held_out=200 gallery=1000
towers=src/fiber/data/shapes/towers
stage1=(seed="${SEED:-0}") stage2=(seed="${SEED:-0}") report=(--rerank-k 10)
case ${START:-towers} in
  nothing) towers="" steps=(840 1450) ;;
  towers)
    steps=(200 600)
    stage1+=(model.image.pretrained="$towers/image.safetensors" model.text.pretrained="$towers/text")
    # Fusion and heads are new: they learn fast from the first step on, and negatives are soon hard ones, which the contrast
    # of such towers can tell. What the towers know lasts longer at a smaller rate. Of few steps most have the whole rate.
    stage1+=(pretrain.itc_only_steps=0 pretrain.random_negative_steps=20)
    stage1+=(optim.lr=5e-4 optim.head_multiplier=4 optim.cross_modal_multiplier=4)
    stage2+=(optim.lr=2.5e-4 optim.head_multiplier=4 optim.cross_modal_multiplier=4)
    falls=(optim.schedule=step optim.milestones=[0.7,0.9] optim.decay=0.3)
    stage1+=("${falls[@]}") stage2+=("${falls[@]}")
    ;;
  *) echo "error: START=$START: give towers or nothing" >&2 && exit 2 ;;
esac
if [[ -n ${SMALL:-} ]]; then
  scenes=256 held_out=24 gallery=32 steps=(8 6)
  stage1+=(pretrain.itc_only_steps=4 pretrain.random_negative_steps=6 train.log_every=2)
  stage2+=(train.log_every=2)
  report=(--rerank-k 4)
fi
stage1+=(train.steps="${steps[0]}") stage2+=(train.steps="${steps[1]}")
# Memory of one step is kept for the next instead of going back to the system: 5 to 8 % of the processor's time on this
# small model (glibc; other systems do not read these).
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=67108864
# Stage 1 takes 0.7 of the time in bfloat16 where the processor multiplies it faster (AMX, AMD's avx512_bf16; Intel's
# takes 1.3 times as long). Others take a tenth less in fp32 without ZeRO, which bfloat16 needs. In stage 2 ZeRO costs as
# much as bfloat16 saves.
precision=(train.precision=fp32 train.zero_stage=0)
if grep -qs amx_bf16 /proc/cpuinfo || { grep -qs AuthenticAMD /proc/cpuinfo && grep -qs avx512_bf16 /proc/cpuinfo; }; then
  precision=(train.precision=bf16)
fi
began=$(date +%s)
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

say "1/5  shards of the shapes world ($scenes scenes to train on; held out: $held_out, and $gallery to retrieve from)"
if [[ -n $(ls -A "$out" 2>/dev/null) && ! -f $out/logs/shards.jsonl ]]; then
  echo "error: OUT=$out holds other things than an earlier demo: give the demo a folder of its own" >&2
  exit 2
fi
rm -rf "$out"
mkdir -p "$out/logs" "$out/figures"
: >"$out/logs/shards.jsonl" # by which the next demo knows that it may be deleted
shards() { python tools/make_shards.py shapes --world easy --captions full --workers 2 "$@" | tail -n 1 >>"$out/logs/shards.jsonl"; }
shards --split train --limit "$scenes" --out "$out/shards/train"
shards --split test --limit "$held_out" --out "$out/shards/test"
shards --split test --limit "$gallery" --out "$out/shards/gallery" # in 200 scenes the contrast leaves little to re-rank
if [[ -n $towers ]]; then
  mkdir "$out/tokenizer"
  cp "$towers"/text/tokenizer*.json "$out/tokenizer" # the text tower knows these words
else
  python tools/train_tokenizer.py "$out/shards/train" --out "$out/tokenizer" >"$out/logs/tokenizer.json"
fi
python - "$out" <<'PY'
import sys
from pathlib import Path

from fiber.data.shards import ShardSet

out, shards = Path(sys.argv[1]), ShardSet(Path(sys.argv[1]) / "shards" / "test")
(out / "images").mkdir()
for number in range(8):
    extension, data = shards.read(number).images[0]
    (out / "images" / f"{number}.{extension}").write_bytes(data)
PY

say "2/5  stage 1, coarse: image-text pairs (contrastive, matching, masked words)"
paths=(tokenizer="$out/tokenizer" data.train.0.path="$out/shards/train")
# One rank of all cores: two would wait for each other at every step of so small a model, and take a fifth longer.
RANKS=1 launch/stage1_coarse.sh configs/stage1/shapes_tiny.yaml output="$out/stage1" eval.data=[] train.micro_batch=32 \
  "${precision[@]}" "${paths[@]}" "${stage1[@]}"

say "3/5  what stage 1 has learned"
python tools/shapes_report.py "$out/stage1" --shards "$out/shards/gallery" --words "$out/shards/test" --out "$out/figures" \
  "${report[@]}" | grep -v '^{'

say "4/5  stage 2, fine: phrases and boxes, starting from stage 1"
paths+=(data.train.1.path="$out/shards/train" eval.data.0.path="$out/shards/test" eval.data.1.path="$out/shards/test")
launch/stage2_fine.sh configs/stage2/shapes_tiny.yaml output="$out/stage2" init_from="$out/stage1" "${paths[@]}" "${stage2[@]}"

say "5/5  images and summary"
python tools/visualize.py "$out/stage2" --shards "$out/shards/test" --out "$out/figures/grounding.png" \
  >"$out/logs/visualize.json" &
images=$!
python -m fiber.cli.main report "$out/stage2" --out "$out/report" >"$out/logs/report.log"
wait "$images"
python tools/demo_summary.py "$out" --began "$began"
if [[ -z ${SMALL:-} ]]; then # what has trained for a few steps answers nothing right
  python tools/demo_examples.py "$out" || true # a wrong one is said; what was trained stays
fi
