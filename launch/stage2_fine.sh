#!/usr/bin/env bash
# Stage 2 on one machine:  launch/stage2_fine.sh CONFIG [--mode eval] [key.path=value ...]
# Run it again to go on after an interruption. RANKS: processes (default: one per GPU; without GPUs 2, on the CPU).
# CUDA_VISIBLE_DEVICES: only these GPUs. MASTER_PORT: the port of the job, in place of a free one. Exit status 75: stopped
# by a signal and saved, not finished.
source "$(dirname "$0")/common.sh"
start src/fiber/stage2_fine.py --config "$@"
