#!/usr/bin/env bash
# Stage 2 on one machine:  launch/stage2_fine.sh CONFIG [--mode eval] [key.path=value ...]
# Run it again to go on after an interruption. RANKS: processes (default: one per GPU; without GPUs 2, on the CPU).
# MASTER_PORT: another port for a second job on the machine.
source "$(dirname "$0")/common.sh"
start src/fiber/stage2_fine.py --config "$@"
