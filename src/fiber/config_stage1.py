"""The configuration of image-level runs: coarse pre-training and the tasks fine-tuned from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fiber.config import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    TrackingConfig,
    TrainConfig,
    check_model,
    require,
    validate_training,
)


@dataclass(frozen=True)
class PretrainConfig:
    """The three objectives of coarse pre-training."""

    itc_weight: float = 1.0
    itm_weight: float = 1.0
    mlm_weight: float = 1.0
    queue_size: int = 4096  # past features per modality in the contrastive softmax
    gather_gradient: bool = False  # let contrastive gradients reach the other ranks' features too
    itc_only_steps: int = 0  # warm-up during which only the contrastive loss has weight
    random_negative_steps: int = 0  # steps during which ITM negatives are drawn uniformly
    mask_probability: float = 0.15


@dataclass(frozen=True)
class Stage1Config:
    """Everything at image level. Saved, resolved, as `config.yaml` of the run directory."""

    output: str
    tokenizer: str
    seed: int = 0
    task: Literal["pretrain"] = "pretrain"
    image_size: int = 384
    max_text: int = 40
    model: ModelConfig = field(default_factory=ModelConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    init_from: str | None = None  # a run directory or export folder: weights only


def validate(config: Stage1Config, world: int) -> None:
    """Everything that can be known wrong about a stage-1 run before it costs anything. Raises ConfigError."""
    validate_training(config, world)
    check_model(config)
    size, stride = config.image_size, 4 * 2 ** (len(config.model.image.depths) - 1)
    require(size % stride == 0, f"image_size: {size} is not a multiple of the image tower's stride {stride}")
