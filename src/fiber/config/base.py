"""The sections of a configuration that both stages have.

Every key is a field of a dataclass, with its range next to it (pydantic checks types and ranges when an object is
made; `loading.py` turns what it says into one line). `stage1.py` and `stage2.py` hold the sections of one stage.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

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
    checkpointing: bool | Literal["selective"] = False  # recompute blocks in the backward pass; all but the products


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
    sampling: Literal["each", "with_boxes", "class_aware"] = "each"  # or all classes equally often (needs a weight)


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
    patience: Count = 3  # schedule "plateau": evaluations without gain in train.best; at the next one lr falls
    min_lr: Share = 0.0  # schedule "plateau": no group of parameters falls below this rate
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
    preset: Literal["off", "auto", 24, 40, 80, 141] = "off"  # GB of a card, by which the next two, checkpointing, ...
    micro_batch: Count = 64  # samples per rank and forward pass
    accumulation: Count = 1  # forward passes per update; ... and precision are chosen
    zero_stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(_no_truth_value)] = 1  # 0 shards nothing, 3 all
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False  # blocks by torch.compile: minutes at the start, then faster steps
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
    at_start: bool = False  # evaluate before the first step, too: `start.json` of the run
    data: tuple[EvalSourceConfig, ...] = ()
    batch: Annotated[Whole, Field(ge=1, le=65_536)] = 64


@dataclass(frozen=True, config=STRICT)
class TrackingConfig:
    """Where the log goes besides metrics.jsonl."""

    wandb: Literal["online", "offline", "off"] = "off"
    project: Text = "fiber"
    tensorboard: bool = False  # event files in RUN/tensorboard; needs the tensorboard package


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """What the configurations of both stages have. Saved, resolved, as `config.yaml` of the run directory."""

    output: Text  # the run directory
    tokenizer: Text | None = None  # a folder, a run directory or a hub name; null: that of `init_from`
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 0
    tuning: TuningConfig = TuningConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()
    init_from: Text | None = None  # a run directory, an export folder or a hub name: weights only
