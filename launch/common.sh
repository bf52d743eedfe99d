# What the launch scripts share. To be sourced first:  source "$(dirname "$0")/common.sh"
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Jobs run in this folder, so a path must mean the same here and where it was typed.
if [[ $(realpath "$caller") != $(realpath .) ]]; then
  words=("$@")
  for name in OUT RUN STAGE1 STAGE2 MODEL TEST SHARDS SHAPES HARD KEEP CONFIG HOSTFILE; do
    [[ -z ${!name:-} ]] || words+=("$name=${!name}")
  done
  for word in "${words[@]}"; do
    value=${word#*=}
    if [[ $value != /* && (-e $caller/$value || $word == *.yaml || $word =~ ^(output|OUT|RUN)=) ]]; then
      echo "error: $word: a relative path, and jobs run in $PWD, not in $caller: give it from /" >&2
      exit 2
    fi
  done
fi
[[ -d .venv ]] && source .venv/bin/activate

# start SCRIPT ARGUMENT...: a job on this machine, in place of this shell. RANKS: processes (default: one per GPU; without
# GPUs 2, on the CPU). CUDA_VISIBLE_DEVICES: only these GPUs. MASTER_PORT: the port of the job, in place of a free one.
# DS_ACCELERATOR=cpu: on the CPU, whatever GPUs there are. Exit status 75: stopped by a signal and saved, not finished.
start() {
  local cards ranks where cores port
  cards=$(nvidia-smi -L 2>/dev/null | sed -n 's/^GPU \([0-9]*\):.*/\1/p' | paste -sd, || true)
  [[ -z $cards || -z ${CUDA_VISIBLE_DEVICES+set} ]] || cards=${CUDA_VISIBLE_DEVICES// /}
  if [[ -z $cards || $cards == -1 || ${DS_ACCELERATOR:-} == cpu ]]; then
    cards="" ranks=${RANKS:-2}
    export DS_ACCELERATOR=cpu
    cores=$(($(nproc) / ranks))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 0 ? cores : 1))} # more threads than cores cost a factor of four
    where=(--num_gpus "$ranks")
  else
    ranks=$(tr , '\n' <<<"$cards" | wc -l)
    ((${RANKS:-1} <= ranks)) || { echo "error: RANKS=$RANKS: there are $ranks GPUs ($cards)" >&2 && exit 2; }
    ranks=${RANKS:-$ranks} cards=$(cut -d, -f"1-${RANKS:-}" <<<"$cards")
    [[ $ranks == 1 || $cards =~ ^[0-9,]*$ ]] ||
      { echo "error: CUDA_VISIBLE_DEVICES=$cards: for several ranks give numbers of nvidia-smi -L" >&2 && exit 2; }
    where=(--include "localhost:$cards") # with --num_gpus it would count from GPU 0
  fi
  if ((ranks == 1)); then # nothing to launch: some seconds less
    [[ -z $cards ]] || export CUDA_VISIBLE_DEVICES=$cards
    exec python -u "$@"
  fi
  # Below the ports of outgoing connections, one of which may be taken before the job listens.
  port=${MASTER_PORT:-$(python -c 'import random, socket
for port in random.sample(range(20000, 32000), 100):
    try:
        socket.socket().bind(("", port))
    except OSError:
        continue
    print(port)
    break')}
  trap '' INT # Ctrl-C is for the ranks, which save; the launcher waits for them
  exec deepspeed --quiet "${where[@]}" --master_port "$port" "$@"
}

# finetune DEFAULT [CONFIG] [key.path=value ...]: train CONFIG, or go on with it; then evaluate the weights that the run
# keeps, on TEST where it is given. STAGE1: the run or export to start from, in place of the configuration's init_from;
# OUT: the run directory, in place of its output.
finetune() {
  local config=$1
  shift
  if [[ ${1:-} == *.yaml ]]; then
    config=$1
    shift
  fi
  set -- ${STAGE1:+"init_from=$STAGE1"} ${OUT:+"output=$OUT"} "$@"
  launch/stage1_coarse.sh "$config" "$@"
  launch/stage1_coarse.sh "$config" --mode eval "$@" ${TEST:+"eval.data.0.path=$TEST"}
}
