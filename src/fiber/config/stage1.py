"""The configuration of image-level runs: coarse pre-training and the tasks fine-tuned from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fiber.config.base import (
    STRICT,
    BelowOne,
    Count,
    CountOrNone,
    DataConfig,
    EvalConfig,
    ModelConfig,
    RunConfig,
    Share,
    Size,
    Text,
    Weight,
    Whole,
)
from fiber.config.checks import check_model, require, validate_training


@dataclass(frozen=True, config=STRICT)
class PretrainConfig:
    """The three objectives of coarse pre-training. The queue and `gather_gradient` are those of the contrastive one
    in fine-tuned retrieval, too."""

    itc_weight: Weight = 1.0  # of the contrastive loss
    itm_weight: Weight = 1.0  # of the matching loss
    mlm_weight: Weight = 1.0  # of the masked-language loss
    queue_size: Annotated[Whole, Field(ge=0, le=10**7)] = 4096  # past features per modality in the softmax
    gather_gradient: bool = False  # let contrastive gradients reach the other ranks' features too
    itc_only_steps: CountOrNone = 0  # warm-up during which only the contrastive loss has weight
    random_negative_steps: CountOrNone = 0  # steps during which ITM negatives are drawn uniformly
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15  # of a word in masked language modelling


@dataclass(frozen=True, config=STRICT)
class FinetuneConfig:
    """What the tasks fine-tuned from stage 1 share."""

    augment: bool = True  # random resized crop, mirroring and RandAugment; else a plain resize
    flip_sides: bool = False  # mirror images whose text speaks of left or right, too
    label_smoothing: BelowOne = 0.0  # share of the target that goes to all classes, or tokens of a caption, alike
    negatives: Literal["random", "hard"] = "random"  # task retrieval_itm: drawn uniformly, or by similarity
    itc_weight: Weight = 0.0  # task retrieval_itm: of the contrastive loss next to matching


@dataclass(frozen=True, config=STRICT)
class CaptionConfig:
    """Captioning: cross-entropy first ("mle"), off-policy weights ("gold"), then the reward itself ("cider")."""

    objective: Literal["mle", "gold", "cider"] = "mle"
    gold_refresh: Count = 1000  # updates after which the weighting model is copied again
    samples: Annotated[Whole, Field(ge=1, le=1024)] = 5  # captions drawn from each image ("cider")
    mle_weight: Share = 0.3  # share of cross-entropy in the loss of "cider"
    baseline: Literal["mean", "none"] = "mean"  # reward less that of the other samples, or the release's form
    document_frequency: Text | None = None  # file of n-gram counts ("cider"); null counts the training captions
    beam: Annotated[Whole, Field(ge=1, le=1024)] = 5  # beams of the evaluation
    max_new_tokens: Annotated[Whole, Field(ge=1, le=4096)] = 50  # of a caption


@dataclass(frozen=True, config=STRICT)
class ImageTextDataConfig(DataConfig):
    """As `DataConfig`, and how images are resized."""

    transform: Literal["fast", "pil"] = "fast"  # on tensors, or by Pillow, by which published figures are judged


@dataclass(frozen=True, config=STRICT)
class RetrievalEvalConfig(EvalConfig):
    """As `EvalConfig`, and how retrieval is re-ranked."""

    rerank_k: CountOrNone = 128  # candidates of each query that matching scores; 0 none


@dataclass(frozen=True, config=STRICT)
class Stage1Config(RunConfig):
    """Everything at image level."""

    task: Text = "pretrain"  # a name of tasks/table.py
    image_size: Size = 384  # side of the square image, px
    max_text: Annotated[Whole, Field(ge=1, le=512)] = 40  # tokens of a text, the special ones among them
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    caption: CaptionConfig = CaptionConfig()
    data: ImageTextDataConfig = ImageTextDataConfig()
    eval: RetrievalEvalConfig = RetrievalEvalConfig()


def validate(config: Stage1Config, world: int | None) -> None:
    """Everything that can be known wrong about a stage-1 run before it costs anything. Raises ConfigError."""
    validate_training(config, world)
    check_model(config)
    modes = ("full", "frozen_towers", "lora")
    require(
        config.tuning.mode in modes,
        f"tuning.mode: {config.tuning.mode} is of region level; at image level choose {', '.join(modes)}",
    )
    require(
        config.caption.baseline == "none" or config.caption.samples >= 2,
        "caption.baseline: mean compares the captions of an image with each other; it needs caption.samples >= 2",
    )
    weights = (config.pretrain.itc_weight, config.pretrain.mlm_weight, config.pretrain.itm_weight)
    require(config.task != "pretrain" or any(weights), "pretrain: all weights are 0, so nothing would be learned")
    image, size = config.model.image, config.image_size
    stride = 4 * 2 ** (len(image.depths) - 1)
    require(size % stride == 0, f"image_size: {size} is not a multiple of the image tower's stride {stride}")
    for stage in range(len(image.depths)):
        side = size // (4 * 2**stage)
        require(
            side <= image.window or side % image.window == 0,
            f"model.image.window: {image.window} does not divide the {side} x {side} tokens of stage {stage} at "
            f"image_size {size}",
        )
