"""`train.preset`: micro-batch, recomputation and precision for the memory of a card, by the count of `memory.py`.

The global batch never changes: accumulation follows. Losses over the micro-batches of all ranks (contrast,
negatives) see fewer pairs where the micro-batch shrinks, so the lightest recomputation is taken with which the
configuration's own micro-batch fits, and then the largest that fits.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fiber import distributed
from fiber.config.command import Command
from fiber.config.stage2 import Stage2Config
from fiber.data.text import load_tokenizer
from fiber.errors import ConfigError
from fiber.tasks.memory import run_bytes
from fiber.weights.hub import export_folder

USABLE = 0.9
"""Of a card's memory: the rest is the driver's, the libraries' and what lies between blocks."""

FEWEST_IMAGES = 4
"""Images of a region-level pass worth recomputation: with one or two, a card waits for the host (2,500 kernels)."""

ROBERTA = 50_265
"""Ids, where no tokenizer is at hand to count."""


def fitted(command: Command) -> Any:
    """The configuration of a job's process, see `fit`; for an evaluation as it is."""
    return fit(command.config, distributed.world_size()) if command.mode == "train" else command.config


def fit(config: Any, world: int) -> Any:
    """The configuration with what its preset chooses; says on one rank what and why. Raises ConfigError."""
    train = config.train
    if train.preset == "off":
        return config
    memory, precision = _card(train.preset)
    share, rest = divmod(train.global_batch, world)
    if rest:
        raise ConfigError(f"train.global_batch: {train.global_batch} is no multiple of {world} ranks")
    if train.zero_stage == 0:
        raise ConfigError(f"train.preset: {precision} needs train.zero_stage 1 or more")
    wanted = min(max(train.micro_batch, FEWEST_IMAGES if isinstance(config, Stage2Config) else 1), share)
    for how in (False, True) if train.compile else (False, "selective", True):
        config = replace(
            config,
            model=replace(config.model, checkpointing=how),
            train=replace(train, precision=precision, micro_batch=1, accumulation=share),
        )
        _, fixed, sample = run_bytes(config, vocabulary_of(config), world)
        fits = int((memory - fixed) / sample)
        if fits >= wanted:
            break
    if fits < 1:
        raise ConfigError(
            f"train.preset: {train.preset} is too small for one sample: {fixed / 1e9:.1f} GB of weights and "
            f"optimizer, {sample / 1e9:.1f} GB per sample, {memory / 1e9:.1f} GB usable; set train.zero_stage=3 or "
            "train.offload"
        )
    micro = max(n for n in range(1, min(share, fits) + 1) if share % n == 0)
    if distributed.is_main():
        print(
            f"train.preset {train.preset}: train.micro_batch={micro} train.accumulation={share // micro} "
            f"model.checkpointing={str(how).lower()} train.precision={precision} ({memory / 1e9:.1f} GB usable: "
            f"{fixed / 1e9:.1f} of weights and optimizer, {sample / 1e9:.2f} per sample, {fits} fit)",
            file=sys.stderr,
        )
    return replace(config, train=replace(config.train, micro_batch=micro, accumulation=share // micro))


def _card(preset: str | int) -> tuple[float, str]:
    """(usable bytes, precision) of the smallest card here (auto), or of one that has so many GB and bf16, as all of
    these sizes do since Ampere. Raises ConfigError."""
    if isinstance(preset, int):
        return USABLE * preset * 1e9, "bf16"
    if not torch.cuda.is_available():
        raise ConfigError("train.preset: auto needs a CUDA card here; give 24, 40, 80 or 141 (GB), or off")
    cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    precision = "bf16" if all(card.major >= 8 for card in cards) else "fp16"
    return USABLE * min(card.total_memory for card in cards), precision


def vocabulary_of(config: Any) -> int:
    """Ids of the tokenizer, or of that of the model to start from; RoBERTa's where it is not at hand: a name of the
    hub is not fetched to count."""
    given = config.tokenizer or config.init_from
    at_hand = given is not None and Path(given).is_dir()
    return len(load_tokenizer(export_folder(given))) if at_hand else ROBERTA
