#!/usr/bin/env bash
# Phrase grounding on Flickr30k Entities, zero-shot:  launch/grounding.sh [key.path=value ...]
# MODEL: a run or export at region level; CONFIG: another configuration.
source "$(dirname "$0")/common.sh"

exec launch/stage2_fine.sh "${CONFIG:-configs/stage2/flickr30k_grounding.yaml}" --mode eval \
  init_from="${MODEL:-runs/fiber_base_fine}" "$@"
