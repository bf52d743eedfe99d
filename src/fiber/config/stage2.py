"""The configuration of region-level runs: fine pre-training and the tasks fine-tuned from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fiber.config.base import (
    STRICT,
    BelowOne,
    DataConfig,
    EvalConfig,
    Multiplier,
    OptimConfig,
    RunConfig,
    Share,
    Size,
    TowersConfig,
    Weight,
    Whole,
)
from fiber.config.checks import check_model, require, validate_training


@dataclass(frozen=True, config=STRICT)
class DetectorConfig:
    """Pyramid and dynamic head on the fused backbone; one anchor size and stride per level."""

    channels: Size = 256  # of the pyramid
    head_channels: Size = 256
    head_blocks: Annotated[Whole, Field(ge=1, le=64)] = 6
    groups: Size = 16  # of the group normalisation
    anchor_sizes: tuple[Annotated[float, Field(gt=0, le=1e5)], ...] = (64, 128, 256, 512, 1024)  # px
    strides: tuple[Size, ...] = (8, 16, 32, 64, 128)  # px
    drop_block: BelowOne = 0.3
    log_scale: Annotated[float, Field(ge=-100, le=100)] = 0.0  # initial log temperature of tokens; -2.5 is faster


@dataclass(frozen=True, config=STRICT)
class RegionConfig:
    """Samples and losses."""

    short_sides: tuple[Size, ...] = (480, 560, 640, 720, 800)  # px; one is drawn for each sample
    test_side: Size = 800  # px, short side in evaluation
    max_side: Size = 1333  # px
    flip: Share = 0.5  # probability of mirroring, where the caption has no left or right
    vertical_flip: Share = 0.0  # probability of turning images with classes upside down: things that have no up
    classes: Literal["sampled", "all"] = "sampled"  # in the caption of a detection sample; "all" must fit max_text
    shuffle_classes: bool = False  # classes "all": a new order in each training caption
    max_negatives: Annotated[Whole, Field(ge=0, le=65_536)] = 85  # absent classes in a sampled caption, at most
    negatives: Literal["drawn", "most"] = "drawn"  # how many, of the listed; or always as many of all as fit (LVIS)
    absent_phrases: Annotated[Whole, Field(ge=0, le=64)] = 0  # of other images, put behind a grounding caption
    other_caption: Share = 0.0  # probability that a grounding caption is another image's, all of it absent
    token_weight: Weight = 1.0  # of the loss of token alignment
    box_weight: Weight = 2.0  # of the box loss
    centerness_weight: Weight = 1.0  # of the centerness loss
    frozen_stages: Annotated[Whole, Field(ge=0, le=64)] = 1  # image stages, with patch embedding, kept fixed
    chunk_classes: Size | None = None  # asked in one prompt of evaluation; null: as many as max_text holds. LVIS: 40
    figures: Annotated[Whole, Field(ge=0, le=10_000)] = 8  # images drawn at each evaluation, per set


@dataclass(frozen=True, config=STRICT)
class RegionOptimConfig(OptimConfig):
    """As `OptimConfig`; pyramid and head learn at the rate of the towers, as published."""

    head_multiplier: Multiplier = 1.0  # of pyramid and detection head


@dataclass(frozen=True, config=STRICT)
class RegionEvalConfig(EvalConfig):
    """As `EvalConfig`."""

    multi_scale: bool = False  # ask at 12 sizes, mirrored too, and vote, as the release's test does: 24 x the cost
    scales: tuple[Size, ...] = ()  # px, short sides to ask at in this way, within regions.max_side, in place of those


@dataclass(frozen=True, config=STRICT)
class Stage2Config(RunConfig):
    """Everything at region level."""

    max_text: Annotated[Whole, Field(ge=1, le=512)] = 256  # tokens of a caption or prompt, with the special ones
    model: TowersConfig = TowersConfig()
    detector: DetectorConfig = DetectorConfig()
    regions: RegionConfig = RegionConfig()
    data: DataConfig = DataConfig()
    optim: RegionOptimConfig = RegionOptimConfig()
    eval: RegionEvalConfig = RegionEvalConfig()


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
    for name, width in (("channels", detector.channels), ("head_channels", detector.head_channels)):
        require(width % detector.groups == 0, f"detector.{name}: {width} is no multiple of groups {detector.groups}")
    require(bool(regions.short_sides), "regions.short_sides: give at least one")
    weights = (regions.token_weight, regions.box_weight, regions.centerness_weight)
    require(any(weights), "regions: the weights of all losses are 0, so nothing would be learned")
    sides = (*regions.short_sides, regions.test_side, *config.eval.scales)
    require(min(sides) >= 32, "regions: sides below 32 px leave nothing to detect")
    require(regions.max_side >= max(sides), f"regions.max_side: {regions.max_side} px is less than a short side")
    require(
        regions.frozen_stages <= stages,
        f"regions.frozen_stages: the image tower has {stages} stages, got {regions.frozen_stages}",
    )
    for section, sources in (("data.train", config.data.train), ("eval.data", config.eval.data)):
        for i, source in enumerate(sources):
            require(
                source.field in ("captions", "expressions", "boxes"),
                f"{section}.{i}.field: stage 2 learns from captions, expressions, boxes, got {source.field!r}",
            )
