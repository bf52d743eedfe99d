"""The configuration of image-level runs: coarse pre-training and the tasks fine-tuned from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fiber.config.base import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    TrackingConfig,
    TrainConfig,
    TuningConfig,
    check_model,
    require,
    validate_training,
)


@dataclass(frozen=True)
class PretrainConfig:
    """The three objectives of coarse pre-training. The queue and `gather_gradient` are those of the contrastive one
    in fine-tuned retrieval, too."""

    itc_weight: float = 1.0
    itm_weight: float = 1.0
    mlm_weight: float = 1.0
    queue_size: int = 4096  # past features per modality in the contrastive softmax
    gather_gradient: bool = False  # let contrastive gradients reach the other ranks' features too
    itc_only_steps: int = 0  # warm-up during which only the contrastive loss has weight
    random_negative_steps: int = 0  # steps during which ITM negatives are drawn uniformly
    mask_probability: float = 0.15


@dataclass(frozen=True)
class FinetuneConfig:
    """What the tasks fine-tuned from stage 1 share."""

    augment: bool = True  # random resized crop, mirroring and RandAugment; else a plain resize
    flip_sides: bool = False  # mirror images whose text speaks of left or right, too
    label_smoothing: float = 0.0  # share of the target that goes to all classes, or tokens of a caption, alike
    negatives: Literal["random", "hard"] = "random"  # task retrieval_itm: drawn uniformly, or by similarity
    itc_weight: float = 0.0  # task retrieval_itm: of the contrastive loss beside matching


@dataclass(frozen=True)
class CaptionConfig:
    """Captioning: cross-entropy first ("mle"), off-policy weights ("gold"), then the reward itself ("cider")."""

    objective: Literal["mle", "gold", "cider"] = "mle"
    gold_refresh: int = 1000  # updates after which the weighting model is copied anew
    samples: int = 5  # captions drawn from each image ("cider")
    mle_weight: float = 0.3  # share of cross-entropy in the loss of "cider"
    baseline: Literal["mean", "none"] = "mean"  # reward less that of the other samples, or the release's form
    document_frequency: str | None = None  # n-gram counts of the training captions ("cider")
    beam: int = 5
    max_new_tokens: int = 50


@dataclass(frozen=True)
class Stage1Config:
    """Everything at image level. Saved, resolved, as `config.yaml` of the run directory."""

    output: str
    tokenizer: str
    seed: int = 0
    task: str = "pretrain"  # a name of tasks/table.py
    image_size: int = 384
    max_text: int = 40
    model: ModelConfig = field(default_factory=ModelConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    init_from: str | None = None  # a run directory or export folder: weights only


def validate(config: Stage1Config, world: int | None) -> None:
    """Everything that can be known wrong about a stage-1 run before it costs anything. Raises ConfigError."""
    validate_training(config, world)
    check_model(config)
    modes = ("full", "frozen_towers", "lora")
    require(
        config.tuning.mode in modes,
        f"tuning.mode: {config.tuning.mode} is of region level; at image level choose {', '.join(modes)}",
    )
    _check_finetuning(config)
    size, stride = config.image_size, 4 * 2 ** (len(config.model.image.depths) - 1)
    require(size % stride == 0, f"image_size: {size} is not a multiple of the image tower's stride {stride}")


def _check_finetuning(config: Stage1Config) -> None:
    tuned, caption = config.finetune, config.caption
    require(
        0 <= tuned.label_smoothing < 1, f"finetune.label_smoothing: must lie in [0, 1), got {tuned.label_smoothing}"
    )
    require(tuned.itc_weight >= 0, f"finetune.itc_weight: must not be negative, got {tuned.itc_weight}")
    for name in ("gold_refresh", "samples", "beam", "max_new_tokens"):
        require(getattr(caption, name) >= 1, f"caption.{name}: must be at least 1, got {getattr(caption, name)}")
    require(0 <= caption.mle_weight <= 1, f"caption.mle_weight: must lie in [0, 1], got {caption.mle_weight}")
    require(
        caption.baseline == "none" or caption.samples >= 2,
        "caption.baseline: mean compares the captions of an image with each other; it needs caption.samples >= 2",
    )
