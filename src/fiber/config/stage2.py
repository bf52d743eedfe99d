"""The configuration of region-level runs: fine pre-training and the tasks fine-tuned from it."""

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
class DetectorConfig:
    """Pyramid and dynamic head on the fused backbone. `anchor_sizes` and `strides` (px): one pair per level."""

    channels: int = 256
    head_channels: int = 256
    head_blocks: int = 6
    groups: int = 16  # of the group normalisation
    anchor_sizes: tuple[float, ...] = (64, 128, 256, 512, 1024)
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    drop_block: float = 0.3
    log_scale: float = 0.0  # initial logarithm of the temperature of token logits; -2.5 learns words sooner


@dataclass(frozen=True)
class RegionConfig:
    """Samples and losses."""

    short_sides: tuple[int, ...] = (480, 560, 640, 720, 800)  # px; one is drawn for each sample
    test_side: int = 800
    max_side: int = 1333
    flip: float = 0.5  # probability of mirroring, where the caption has no left or right
    classes: Literal["sampled", "all"] = "sampled"  # in the caption of a detection sample; "all" must fit max_text
    max_negatives: int = 85  # absent classes in a caption of sampled ones, at most
    token_weight: float = 1.0
    box_weight: float = 2.0
    centerness_weight: float = 1.0
    frozen_stages: int = 1  # image stages, with patch embedding and merges, that keep their weights
    chunk_classes: int | None = None  # asked in one prompt of evaluation; None: as many as max_text holds. LVIS: 40
    figures: int = 8  # drawn at each evaluation, a set


@dataclass(frozen=True)
class Stage2Config:
    """Everything at region level. Saved, resolved, as `config.yaml` of the run directory."""

    output: str
    tokenizer: str
    seed: int = 0
    max_text: int = 256
    model: ModelConfig = field(default_factory=ModelConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    init_from: str | None = None  # a run directory or export folder of either stage: weights only


def validate_stage2(config: Stage2Config, world: int | None) -> None:
    """Everything that can be known wrong about a stage-2 run before it costs anything; `world` as in
    `validate_training`. Raises ConfigError."""
    validate_training(config, world)
    check_model(config)
    detector, regions = config.detector, config.regions
    levels, stages = len(detector.strides), len(config.model.image.depths)
    require(
        detector.strides == tuple(8 * 2**i for i in range(levels)) and levels >= stages - 1,
        f"detector.strides: must be 8, 16, 32, ... and at least {stages - 1} of them for an image tower of {stages} "
        f"stages, got {list(detector.strides)}",
    )
    require(
        len(detector.anchor_sizes) == levels,
        f"detector.anchor_sizes: {levels} strides need {levels} sizes, got {len(detector.anchor_sizes)}",
    )
    for name in ("channels", "head_channels"):
        width = getattr(detector, name)
        require(width % detector.groups == 0, f"detector.{name}: {width} is no multiple of groups {detector.groups}")
    require(bool(regions.short_sides), "regions.short_sides: give at least one")
    require(min(*regions.short_sides, regions.test_side) >= 32, "regions: sides below 32 px leave nothing to detect")
    require(
        regions.chunk_classes is None or regions.chunk_classes > 0,
        f"regions.chunk_classes: must be at least 1, got {regions.chunk_classes}",
    )
    require(0 <= regions.flip <= 1, f"regions.flip: must lie in [0, 1], got {regions.flip}")
    require(
        0 <= regions.frozen_stages <= stages,
        f"regions.frozen_stages: the image tower has {stages} stages, got {regions.frozen_stages}",
    )
    for section, sources in (("data.train", config.data.train), ("eval.data", config.eval.data)):
        for i, source in enumerate(sources):
            fields = ("captions", "expressions", "boxes")
            require(
                source.field in fields,
                f"{section}.{i}.field: stage 2 learns from {', '.join(fields)}, got {source.field!r}",
            )
