# What the launch scripts share. To be sourced first:  source "$(dirname "$0")/common.sh"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -d .venv ]] && source .venv/bin/activate

# start SCRIPT ARGUMENT...: a job on this machine, in place of this shell. RANKS: processes (default: one per GPU; without
# GPUs 2, on the CPU). MASTER_PORT: another port for a second job on the machine.
start() {
  local gpus ranks cores
  gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
  ranks=${RANKS:-$((gpus > 0 ? gpus : 2))}
  if ((gpus == 0)); then
    export DS_ACCELERATOR=cpu
    cores=$(($(nproc) / ranks))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 0 ? cores : 1))} # more threads than cores cost a factor of four
  fi
  exec deepspeed --quiet --num_gpus "$ranks" --master_port "${MASTER_PORT:-29500}" "$@"
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
