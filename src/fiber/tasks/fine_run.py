"""From a configuration to a detector, its task and its export at region level."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.backbone.lora import add_lora, merge_lora
from fiber.config.stage2 import Stage2Config
from fiber.data.prompts import PromptBuilder
from fiber.data.samples.regions import RegionSample
from fiber.data.text import load_tokenizer
from fiber.errors import ConfigError, WeightsError
from fiber.fine.losses import LossWeights
from fiber.fine.model import FiberDetector, GroundingTask
from fiber.weights.export import Card, ExportConfig, read_export, write_export
from fiber.weights.load import NEW_IN_FINE, LoadReport, load_weights


def open_tokenizer(config: Stage2Config) -> PreTrainedTokenizerFast:
    """The run's tokenizer. Raises ConfigError where there is none."""
    try:
        return load_tokenizer(config.tokenizer)
    except ValueError as error:
        raise ConfigError(f"tokenizer: {error}") from None


def detector_options(config: Stage2Config) -> dict[str, Any]:
    """Keyword arguments of FiberDetector but the backbone: what an export stores to build the model again."""
    return asdict(config.detector) | {
        "text_limit": config.max_text,
        "prompt_tuning": config.tuning.mode == "prompt",
    }


def build_detector(config: Stage2Config, tokenizer: PreTrainedTokenizerBase) -> FiberDetector:
    """The region-level model of a run, with initial weights drawn from the run's seed (the same on all ranks) and the
    parts frozen that the run freezes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = build_backbone(config.model, len(tokenizer), tokenizer.pad_token_id, config.max_text, fine=True)
        # Pyramid and head draw their own weights, as detectors do, whatever `model.init` says of the towers.
        model = FiberDetector(backbone, **detector_options(config), checkpointing=config.model.checkpointing)
    initialise(backbone, config.model.init, config.seed)
    tuning = config.tuning
    if tuning.mode == "lora":
        add_lora(model, tuning.lora_rank, tuning.lora_alpha, config.seed)
    else:
        model.tune(tuning.mode, config.regions.frozen_stages)
    backbone.fusion.caption_maps.requires_grad_(False)  # of captioning; no gradient would ever reach them here
    return model


def build_task(config: Stage2Config, tokenizer: PreTrainedTokenizerBase) -> GroundingTask:
    """What a training step of the run computes."""
    regions = config.regions
    weights = LossWeights(regions.token_weight, regions.box_weight, regions.centerness_weight)
    return GroundingTask(build_detector(config, tokenizer), weights)


def build_sample(config: Stage2Config, tokenizer: PreTrainedTokenizerBase) -> RegionSample:
    """How the run makes training samples."""
    regions = config.regions
    return RegionSample(
        PromptBuilder(tokenizer, config.max_text),
        short_sides=regions.short_sides,
        max_side=regions.max_side,
        flip=regions.flip,
        classes=regions.classes,
        max_negatives=regions.max_negatives,
    )


def start_from(model: FiberDetector, path: str | Path, tokenizer: PreTrainedTokenizerBase) -> LoadReport:
    """Put the weights of a run or export of either stage into `model`, in place. From an image-level model pyramid,
    head and stage norms stay new; rows of the vocabulary follow their tokens. Raises WeightsError."""
    export = read_export(path)
    if "prompt" in export.tensors and model.prompt is None:
        raise WeightsError(f"{path} has a learned prompt, which this run would leave out: set tuning.mode=prompt")
    allowed = NEW_IN_FINE if export.config.stage == "coarse" else ("prompt",)
    vocabulary = (export.tokenizer.get_vocab(), tokenizer.get_vocab())
    same = vocabulary[0] == vocabulary[1]
    return load_weights(model, export.tensors, allow_new=allowed, vocabulary=None if same else vocabulary)


def plain_weights(config: Stage2Config, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a run's task by name -> those of its detector, low-rank adapters merged: what an export holds."""
    tensors = {name.removeprefix("model."): x for name, x in weights.items() if name.startswith("model.")}
    return merge_lora(tensors, config.tuning.lora_alpha, config.tuning.lora_rank)


def detector_config(config: Stage2Config, tokenizer: PreTrainedTokenizerBase) -> ExportConfig:
    """What the export of a region-level run says about its model."""
    return ExportConfig(
        stage="fine",
        model=config.model,
        vocab_size=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        image_size=config.regions.test_side,
        max_text=config.max_text,
        max_image_size=config.regions.max_side,
        detector=detector_options(config),
    )


def export_detector(
    config: Stage2Config,
    tokenizer: PreTrainedTokenizerBase,
    categories: Sequence[str],
    weights: Mapping[str, Tensor],
    figures: Mapping[str, float],
) -> None:
    """The export folder of a finished run. weights: of the task, by name; categories: class names trained on."""
    tensors = plain_weights(config, weights)
    card = Card([Path(source.path).name for source in config.data.train], config.train.steps, figures)
    about = detector_config(config, tokenizer)
    write_export(Path(config.output) / "export", tensors, about, tokenizer, card=card, categories=categories)
