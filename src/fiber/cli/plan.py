"""`fiber plan`: what a run will take, before it takes it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fiber.cli.numbers import real_number, whole_number

if TYPE_CHECKING:
    from fiber.data.order import MixedStream

DESCRIPTION = """What a run will take: steps, data to read, memory per GPU, FLOP and hours. No GPU is needed.

    fiber plan stage2/fiber_base --gpus 64 --card A100
    fiber plan stage1/vqa data=S --gpus 8 --card H100 --mfu 0.4
    fiber plan stage1/fiber_base train.preset=24 --gpus 8

Memory is an estimate from the structure of the model: weights, gradients and moments as ZeRO shares them, and what a
forward pass of one micro-batch keeps. Hours go by the card's half-precision peak (half of it for fp32) and the share
of it that a run reaches (--mfu; its own log says the true one). Evaluations are not counted.
"""
GIB, GB = 2**30, 1e9


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("config", metavar="CONFIG", help="file, or name of `fiber config list`")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="keys of the configuration")
    parser.add_argument("--gpus", type=whole_number(1), default=1, help="of the whole job (default: %(default)s)")
    parser.add_argument("--card", help="name of the card, such as H100 or A100")
    parser.add_argument(
        "--mfu",
        type=real_number(above=0, most=1),
        default=0.35,
        help="share of the card's peak reached (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; -> exit status. Raises ConfigError."""
    from fiber.cards import PEAK_TFLOPS, card_peak
    from fiber.cli.launcher import Launch, batches
    from fiber.errors import ConfigError
    from fiber.tasks.preset import fit, vocabulary_of

    peak = None if arguments.card is None else card_peak(arguments.card)
    if arguments.card is not None and peak is None:
        raise ConfigError(f"--card {arguments.card}: no such card here; one of {', '.join(PEAK_TFLOPS)}")
    job = Launch.of(arguments.config, arguments.overrides, "train")
    config = resolve(job.file, [*job.overrides, *batches(job.overrides, job.file, arguments.gpus)])
    config = fit(config, arguments.gpus)
    train, vocabulary = config.train, vocabulary_of(config)
    if train.micro_batch * train.accumulation * arguments.gpus != train.global_batch:
        raise ConfigError(
            f"train.global_batch: {train.global_batch} is not micro_batch {train.micro_batch} x accumulation "
            f"{train.accumulation} x {arguments.gpus} GPUs"
        )
    shares = f"{train.micro_batch} x {train.accumulation} accumulated x {arguments.gpus} GPUs"
    rows = [("steps", f"{train.steps:,} of {train.global_batch} samples ({shares})"), *data_rows(config)]
    rows += memory_rows(config, vocabulary, arguments.gpus)
    rows += cost_rows(config, vocabulary, arguments.gpus, arguments.card, peak, arguments.mfu)
    for name, text in rows:
        print(f"{name:12} {text}")
    return 0


def resolve(file: Path, overrides: list[str]) -> Any:
    """The whole configuration, with the sizes of the model that it starts from where that is at hand."""
    from fiber.cli.config import kind_of
    from fiber.config.loading import load_config, read_tree
    from fiber.errors import ConfigError
    from fiber.weights.export import inherited_sizes

    tree = read_tree(file, overrides)
    kind, start = kind_of(tree, file), tree.get("init_from")
    try:
        return load_config(kind, file, overrides, inherited_sizes)
    except ConfigError as error:
        if not str(error).startswith("init_from"):
            raise
        print(f"note: {start} is not here: planned with the sizes of the configuration", file=sys.stderr)
        return load_config(kind, file, overrides)


def training_order(config: Any) -> MixedStream:
    """The order in which a run of `config` reads its training data. Raises ShardError."""
    from fiber.data.order import MixedStream, Source
    from fiber.data.shards import ShardSet
    from fiber.tasks.table import task_of

    per = task_of(config).per(config)
    sources = [Source(ShardSet(s.path), s.field, s.weight, per, s.sampling) for s in config.data.train]
    return MixedStream(
        sources, seed=config.seed, global_batch=config.train.global_batch, window_shards=config.data.window_shards
    )


def data_rows(config: Any) -> list[tuple[str, str]]:
    """What the training data is, where it is here."""
    paths = [source.path for source in config.data.train]
    absent = [path for path in paths if not Path(path).is_dir()]
    if absent or not paths:
        return [("data", f"not here: {', '.join(absent) or 'none given'}")]
    stream = training_order(config)
    whole = sum(file.stat().st_size for path in set(paths) for file in Path(path).glob("*.tar"))
    read = config.train.steps * config.train.global_batch
    if stream.weighted:
        samples = sum(source.shards.count(source.field) for source in stream.sources)
        return [("data", f"{samples:,} samples by weight, {whole / GB:.2f} GB; {read:,} are read")]
    epochs = read / stream.epoch_length
    text = f"{stream.epoch_length:,} samples, {whole / GB:.2f} GB; {stream.steps_per_epoch:,} steps per epoch"
    return [("data", text), ("epochs", f"{epochs:.2f}; up to {whole * epochs / GB:.1f} GB to read")]


def memory_rows(config: Any, vocabulary: int, gpus: int) -> list[tuple[str, str]]:
    """Estimated memory per GPU."""
    from fiber.tasks.memory import run_bytes

    train = config.train
    parameters, state, sample = run_bytes(config, vocabulary, gpus)
    fixed, kept = state / GIB, train.micro_batch * sample / GIB
    text = (
        f"about {fixed + kept:.1f} GiB per GPU: {fixed:.1f} of weights, gradients, moments; {kept:.1f} of activations"
    )
    if config.model.checkpointing:
        text += ", and of one block that is computed again"
    return [
        ("model", f"{parameters / 1e6:.0f} M parameters, {train.precision}, ZeRO {train.zero_stage}"),
        ("memory", text),
    ]


def cost_rows(
    config: Any, vocabulary: int, gpus: int, card: str | None, peak: float | None, mfu: float
) -> list[tuple[str, str]]:
    """FLOP of the run, and hours on a card."""
    import torch

    from fiber.config.stage2 import Stage2Config
    from fiber.tasks.memory import padded
    from fiber.tasks.table import task_of

    whole = replace(config, tuning=replace(config.tuning, mode="full"))
    per_sample = task_of(config).flops(whole, SimpleNamespace(model=weightless(whole, vocabulary)))
    if per_sample is None:
        return [("cost", f"not counted for task {config.task}")]
    shape = torch.Size([1, 3])
    if isinstance(config, Stage2Config):
        sides = config.regions.short_sides
        shape = torch.Size([1, 3, *padded(config, sum(sides) / len(sides))])
    sample = 3 * per_sample(shape)  # a backward costs two forwards
    total = sample * config.train.steps * config.train.global_batch
    frozen = "" if config.tuning.mode == "full" else ", as if everything trained"
    rows = [("cost", f"{sample / 1e9:,.1f} GFLOP per sample, {total / 1e18:,.3g} EFLOP in all{frozen}")]
    if peak is not None:
        reached = peak * 1e12 * mfu / (2 if config.train.precision == "fp32" else 1)
        hours = total / (reached * gpus) / 3600
        rows += [
            (
                "time",
                f"{hours:,.3g} hours on {gpus} x {card} at {mfu:.0%} of the peak, {hours * gpus:,.3g} card hours",
            )
        ]
    return rows


def weightless(config: Any, vocabulary: int) -> Any:
    """The model of a configuration, of shapes without contents."""
    import torch

    from fiber.backbone.build import build_backbone
    from fiber.coarse.model import CoarseModel
    from fiber.config.stage2 import Stage2Config
    from fiber.fine.model import FiberDetector
    from fiber.tasks.regions import detector_options

    fine = isinstance(config, Stage2Config)
    with torch.device("meta"):
        backbone = build_backbone(config.model, vocabulary, 1, config.max_text, fine=fine)
        if fine:
            return FiberDetector(backbone, **detector_options(config))
        return CoarseModel(backbone, head_width=config.model.head_width, vocab_size=vocabulary)
