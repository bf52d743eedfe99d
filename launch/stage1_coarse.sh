#!/usr/bin/env bash
# Stage 1 on one machine:  launch/stage1_coarse.sh CONFIG [--mode eval] [key.path=value ...]
# Run it again to go on after an interruption. RANKS: processes (default: one a GPU; without GPUs 2, on the CPU).
# MASTER_PORT: another port for a second job on the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ -d .venv ]] && source .venv/bin/activate

gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
ranks=${RANKS:-$((gpus > 0 ? gpus : 2))}
if ((gpus == 0)); then
  export DS_ACCELERATOR=cpu
  cores=$(($(nproc) / ranks))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 0 ? cores : 1))} # more threads than cores cost a factor of four
fi
exec deepspeed --quiet --num_gpus "$ranks" --master_port "${MASTER_PORT:-29500}" src/fiber/stage1_coarse.py --config "$@"
