"""What is checked across the keys of a configuration: arithmetic, and keys that need each other. Each raises
ConfigError with one line that names the key and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fiber.config.base import EvalSourceConfig, OptimConfig, TrainConfig
from fiber.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def validate_training(config: Any, world: int | None) -> None:
    """Checks shared by both stages: batch arithmetic, training and evaluation shards. No device is touched and no
    shard is opened. `world` is None for an evaluation, which needs neither training data nor batches that add up."""
    if world is not None:
        _check_train(config.train, world)
        require(bool(config.data.train), "data.train: no training data; give a list of {path, field, weight}")
    else:
        require(bool(config.eval.data), "eval.data: nothing to evaluate on; give a list of {path, field}")
    _check_optim(config.optim)
    _check_selection(config)
    weighted = [source.weight is not None for source in config.data.train]
    require(all(weighted) or not any(weighted), "data.train: give a weight to every source or to none")
    for i, source in enumerate(config.data.train):
        require(
            source.sampling != "class_aware" or (source.field == "boxes" and source.weight is not None),
            f"data.train.{i}.sampling: class_aware needs field boxes and a weight (for every source)",
        )
        require(
            source.sampling != "with_boxes" or source.field == "boxes",
            f"data.train.{i}.sampling: with_boxes needs field boxes, not {source.field}",
        )
    training: Sequence[EvalSourceConfig] = () if world is None else config.data.train
    for section, sources in (("data.train", training), ("eval.data", config.eval.data)):
        for i, source in enumerate(sources):
            _check_shards(f"{section}.{i}.path", source.path)


def _check_train(train: TrainConfig, world: int) -> None:
    product = train.micro_batch * train.accumulation * world
    require(
        product == train.global_batch or train.preset != "off",
        f"train.global_batch: {train.global_batch} is not micro_batch {train.micro_batch} x accumulation "
        f"{train.accumulation} x {world} ranks = {product}",
    )
    require(
        train.offload != "all" or train.zero_stage == 3,
        f"train.offload: all needs train.zero_stage 3, got {train.zero_stage}",
    )
    require(train.offload == "none" or train.zero_stage >= 1, "train.offload: optimizer needs train.zero_stage >= 1")
    require(
        train.precision == "fp32" or train.zero_stage >= 1,
        f"train.precision: {train.precision} needs train.zero_stage 1 or more (below it DeepSpeed cannot accumulate "
        "gradients in fp32); on one rank stage 1 shards nothing",
    )


def _check_optim(optim: OptimConfig) -> None:
    require(len(optim.betas) == 2, f"optim.betas: expected two numbers, got {list(optim.betas)}")
    require(
        (optim.schedule == "step") == bool(optim.milestones),
        "optim.milestones: belongs to optim.schedule step, and that schedule needs it",
    )
    require(
        all(0 < share < 1 for share in optim.milestones),
        f"optim.milestones: shares of the steps between 0 and 1, as [0.67, 0.89], not steps; got "
        f"{list(optim.milestones)}",
    )
    require(
        optim.warmup < 1 or optim.warmup == int(optim.warmup),
        f"optim.warmup: a share of the steps below 1, or a whole number of steps; got {optim.warmup}",
    )
    require(
        optim.min_lr == 0 or optim.schedule == "plateau",
        "optim.min_lr: belongs to optim.schedule plateau, whose drops it limits",
    )
    require(
        optim.decay_drop == 0 or optim.schedule == "step",
        "optim.decay_drop: belongs to optim.schedule step, whose milestones it precedes",
    )


def _check_selection(config: Any) -> None:
    """What chooses by a figure of the evaluation needs its name, and evaluations."""
    train, evaluation = config.train, config.eval
    require(
        train.best is not None or (config.optim.schedule != "plateau" and train.stop_after == 0),
        "train.best: optim.schedule plateau and train.stop_after need it: the evaluation figure that tells a gain",
    )
    require(
        train.best is None or (evaluation.every >= 1 and bool(evaluation.data)),
        "train.best: needs eval.every and eval.data, evaluations to choose from",
    )


def check_model(config: Any) -> None:
    """Sizes of the towers and of the fusion; the text limit."""
    image, text, stages = config.model.image, config.model.text, len(config.model.image.depths)
    require(stages > 0, "model.image.depths: give the number of blocks of at least one stage")
    require(
        len(image.heads) == stages,
        f"model.image.heads: {stages} stages in depths need {stages} numbers, got {len(image.heads)}",
    )
    for stage, heads in enumerate(image.heads):
        width = image.embed_dim * 2**stage
        require(
            width % heads == 0,
            f"model.image.heads.{stage}: {width} channels (embed_dim {image.embed_dim} x {2**stage}) are not a "
            f"multiple of {heads} heads",
        )
    blocks, layers = sum(image.depths), text.layers
    require(
        config.model.num_fused <= min(blocks, layers),
        f"model.num_fused: must lie between 1 and {min(blocks, layers)} (the image tower has {blocks} blocks, "
        f"the text tower {layers} layers), got {config.model.num_fused}",
    )
    require(
        text.width % text.heads == 0,
        f"model.text.width: {text.width} is not a multiple of model.text.heads {text.heads}",
    )
    require(config.max_text >= 3, f"max_text: must hold a token between the special ones, got {config.max_text}")


def _check_shards(key: str, path: str) -> None:
    if path.startswith("pipe:") or "://" in path:
        require(not path.startswith("s3://"), f"{key}: s3:// is not read; give pipe:aws s3 cp {path}/{{}} -")
        return  # remote: known only when read
    folder = Path(path)
    require(folder.is_dir(), f"{key}: no folder {path}")
    require(any(folder.glob("*.tar")), f"{key}: no .tar shards in {path}")
