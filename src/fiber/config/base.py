"""The sections of a configuration that both stages have, and what is checked across keys.

Every key is a field of a dataclass, with its range next to it (pydantic checks types and ranges when an object is
made; `loading.py` turns what it says into one line). `stage1.py` and `stage2.py` hold the sections of one stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from fiber.errors import ConfigError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""No text for a number, no truth value for a count, no infinity, no unknown key."""


def _whole(value: Any) -> Any:
    """1e5 steps are 100000 steps."""
    return int(value) if type(value) is float and value.is_integer() else value


def _no_truth_value(value: Any) -> Any:
    """True is not 1."""
    return repr(value) if isinstance(value, bool) else value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=1, le=10**9)]  # at least one
CountOrNone = Annotated[Whole, Field(ge=0, le=10**9)]  # 0 means never, none or off
Size = Annotated[Whole, Field(ge=1, le=65_536)]  # widths, sides, lengths, layers: more fits no machine
Multiplier = Annotated[float, Field(ge=0, le=1e6)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class ImageTowerConfig:
    """The image tower, a Swin transformer."""

    embed_dim: Size = 128  # channels of the first stage; doubled at each
    depths: tuple[Size, ...] = (2, 2, 18, 2)  # blocks per stage
    heads: tuple[Size, ...] = (4, 8, 16, 32)  # attention heads per stage
    window: Size = 12  # side of an attention window, in tokens
    drop_path: BelowOne = 0.1  # probability of leaving out a block in training, rising to this at the last
    pretrained: str | None = None  # a timm model name or a file, read before training; null starts from scratch


@dataclass(frozen=True, config=STRICT)
class TextTowerConfig:
    """The text tower, a RoBERTa; the size of its vocabulary comes from the tokenizer."""

    width: Size = 768
    layers: Size = 12
    heads: Size = 12
    intermediate: Size = 3072  # width inside the feed-forward layers
    dropout: BelowOne = 0.1
    pretrained: str | None = None  # a hub name or a folder, read before training; null starts from scratch


@dataclass(frozen=True, config=STRICT)
class TowersConfig:
    """The fusion backbone: two towers whose last layers exchange."""

    image: ImageTowerConfig = ImageTowerConfig()
    text: TextTowerConfig = TextTowerConfig()
    num_fused: Size = 6  # image-block / text-layer pairs that exchange, counted from the top
    query_norm: bool = True  # LayerNorm on the image query of the cross-attention
    init: Literal["normal", "fan_in"] = "normal"  # N(0, 0.02) as published, or scaled to the width (from nothing)
    checkpointing: bool = False  # recompute activations block by block in the backward pass


@dataclass(frozen=True, config=STRICT)
class ModelConfig(TowersConfig):
    """The model at image level: the backbone and the width of its heads."""

    head_width: Size = 768  # of the pooled features that heads read


@dataclass(frozen=True, config=STRICT)
class EvalSourceConfig:
    """A shard set and which of its annotations are evaluated."""

    path: Text  # a folder, a URL or `pipe:` command
    field: Text = "captions"  # annotation field


@dataclass(frozen=True, config=STRICT)
class SourceConfig(EvalSourceConfig):
    """A shard set, which of its annotations are samples, and its share of the mix."""

    weight: Annotated[float, Field(gt=0, le=1e6)] | None = None  # null everywhere: each annotation once per epoch


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """What is learned from, and how it is read."""

    train: tuple[SourceConfig, ...] = ()  # the sets of the mix
    window_shards: Annotated[Whole, Field(ge=1, le=32)] = 8  # shards whose samples are shuffled together
    workers: Annotated[Whole, Field(ge=0, le=1024)] = 2  # reading processes per rank; 0 reads in the training process
    max_fault_share: Share = 0.01  # unreadable samples tolerated, as a share of those read


@dataclass(frozen=True, config=STRICT)
class OptimConfig:
    """AdamW and its schedule. Multipliers scale `lr` per group of parameters (training/optim.py says which)."""

    lr: Annotated[float, Field(gt=0, le=1e3)] = 1e-5  # peak learning rate
    betas: tuple[BelowOne, ...] = (0.9, 0.98)  # decay of the two moments
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, le=1e3)] = 0.01
    warmup: Annotated[float, Field(ge=0, le=1e9)] = 0.1  # below 1: a share of the steps; else a number of steps
    warmup_start: Share = 0.0  # factor on lr at step 0
    schedule: Literal["linear", "step", "plateau"] = "linear"
    milestones: tuple[float, ...] = ()  # schedule "step": shares of the steps at which lr is multiplied by decay
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1  # factor on lr at a milestone or plateau
    patience: Count = 3  # schedule "plateau": evaluations without gain in train.best before lr is multiplied by decay
    decay_drop: Share = 0.0  # share of each milestone at which weight_decay is multiplied by decay; 0 never
    clip: Annotated[float, Field(ge=0, le=1e6)] = 0.0  # global gradient norm; 0 does not clip
    cross_modal_multiplier: Multiplier = 5.0  # of the fusion, and of transforms and poolers of heads
    head_multiplier: Multiplier = 5.0  # of objective and answer heads, of pyramid and detection head
    gate_multiplier: Multiplier = 1.0  # of the gates of the fusion, in place of cross_modal_multiplier
    text_multiplier: Multiplier = 1.0  # on top of the others: the text tower and its cross-attention to the image
    bias_multiplier: Multiplier = 1.0  # on top of the others
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # on top, once per layer of a tower from its end; 1 is off


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """How long, on what, and what is kept."""

    steps: Count = 100_000  # updates
    global_batch: Count = 4096  # = micro_batch x accumulation x ranks, checked
    micro_batch: Count = 64  # samples per rank and forward pass
    accumulation: Count = 1  # forward passes per update
    zero_stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(_no_truth_value)] = (
        1  # what DeepSpeed shards: nothing, optimizer, gradients, weights
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    offload: Literal["none", "optimizer", "all"] = "none"  # to host memory: optimizer states, or weights too
    log_every: Count = 10  # steps
    save_every: Count = 1000  # steps
    keep: Count = 2  # checkpoints kept, newest first
    hang_timeout_s: Annotated[float, Field(gt=0, le=1e6)] = 1800.0  # a longer step or evaluation batch ends the job
    max_nonfinite: CountOrNone = 0  # steps with a non-finite loss to skip before stopping
    ema: BelowOne = 0.0  # decay of the averaged weights; 0 keeps none
    best: Text | None = None  # evaluation figure whose highest value chooses the weights that a run exports
    stop_after: CountOrNone = 0  # evaluations without gain in `best` after which training ends; 0 never


@dataclass(frozen=True, config=STRICT)
class TuningConfig:
    """What trains. "full": everything. "frozen_towers": all but both towers. "lora": low-rank additions to the
    attention projections, and what lies outside the backbone. Region level only: "linear", the detector's last maps;
    "prompt", an offset on the text embeddings."""

    mode: Literal["full", "frozen_towers", "linear", "prompt", "lora"] = "full"
    lora_rank: Annotated[Whole, Field(ge=1, le=4096)] = 8
    lora_alpha: Annotated[float, Field(gt=0, le=1e6)] = 16.0  # the additions are scaled by lora_alpha / lora_rank


@dataclass(frozen=True, config=STRICT)
class EvalConfig:
    """What is evaluated, and when."""

    every: CountOrNone = 0  # steps; 0 evaluates only at the end
    data: tuple[EvalSourceConfig, ...] = ()
    batch: Annotated[Whole, Field(ge=1, le=65_536)] = 64


@dataclass(frozen=True, config=STRICT)
class TrackingConfig:
    """Where the log goes besides metrics.jsonl."""

    wandb: Literal["online", "offline", "off"] = "off"
    project: Text = "fiber"


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """What the configurations of both stages have. Saved, resolved, as `config.yaml` of the run directory."""

    output: Text  # the run directory
    tokenizer: Text  # a folder or hub name
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 0
    tuning: TuningConfig = TuningConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()
    init_from: Text | None = None  # a run directory, an export folder or a hub name: weights only


# ---------------------------------------------------------------------------------------------- checks across keys


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
    training: Sequence[EvalSourceConfig] = () if world is None else config.data.train
    for section, sources in (("data.train", training), ("eval.data", config.eval.data)):
        for i, source in enumerate(sources):
            _check_shards(f"{section}.{i}.path", source.path)


def _check_train(train: TrainConfig, world: int) -> None:
    product = train.micro_batch * train.accumulation * world
    require(
        product == train.global_batch,
        f"train.global_batch: {train.global_batch} is not micro_batch {train.micro_batch} x accumulation "
        f"{train.accumulation} x {world} ranks = {product}",
    )
    require(
        train.offload != "all" or train.zero_stage == 3,
        f"train.offload: all needs train.zero_stage 3, got {train.zero_stage}",
    )
    require(
        train.offload == "none" or train.zero_stage >= 1,
        "train.offload: optimizer needs train.zero_stage 1 or more",
    )
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
    require(
        config.max_text >= 3,
        f"max_text: must hold at least one token between the special ones, got {config.max_text}",
    )


def _check_shards(key: str, path: str) -> None:
    if path.startswith("pipe:") or "://" in path:
        return  # remote: known only when read
    folder = Path(path)
    require(folder.is_dir(), f"{key}: no folder {path}")
    require(any(folder.glob("*.tar")), f"{key}: no .tar shards in {path}")
