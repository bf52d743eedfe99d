"""Everything at region level: fine pre-training, phrase grounding, referring expressions and detection are one task
(FIBER §3.3), told apart by the annotation fields of the data: each box answers to the words of its phrase.

Shape letters: B images, (H,W) padded size, L text length, N boxes of the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fiber import distributed
from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.backbone.lora import add_lora, merge_lora
from fiber.config.base import ModelConfig
from fiber.config.stage2 import Stage2Config
from fiber.data.batches import RegionBatch
from fiber.data.prompts import PromptBuilder
from fiber.data.records import SetFacts
from fiber.data.shards import ShardSet, dataset_info
from fiber.errors import WeightsError
from fiber.evaluation.context import EvalContext, evaluate_sets
from fiber.evaluation.example_regions import write_example_regions
from fiber.evaluation.figures import draw_predictions
from fiber.evaluation.region_images import EvalImage
from fiber.evaluation.regions import evaluate_regions
from fiber.fine.losses import (
    PUBLISHED_WEIGHTS,
    Assignment,
    LossWeights,
    Targets,
    assign_batch,
    detection_losses,
    totals,
)
from fiber.fine.model import FiberDetector
from fiber.tasks.compiled import compile_blocks
from fiber.tasks.flops import image_cost
from fiber.tasks.region_samples import REGION_FIELDS, RegionSample, check_set, collate_regions
from fiber.training.speed import FlopsPerSample
from fiber.training.task import Figures, Losses, Task, TaskModule
from fiber.weights.export import Export, categories_of_export, read_export
from fiber.weights.export_config import ExportConfig
from fiber.weights.load import NEW_IN_FINE, UNREAD_IN_FINE, LoadReport, load_weights

# ---------------------------------------------------------------------------------------------- what it reads


def build_sample(config: Stage2Config, tokenizer: PreTrainedTokenizerBase) -> RegionSample:
    """How the run makes training samples."""
    regions = config.regions
    return RegionSample(
        PromptBuilder(tokenizer, config.max_text),
        short_sides=regions.short_sides,
        max_side=regions.max_side,
        flip=regions.flip,
        vertical_flip=regions.vertical_flip,
        classes=regions.classes,
        shuffle=regions.shuffle_classes,
        max_negatives=regions.max_negatives,
        most_negatives=regions.negatives == "most",
        absent_phrases=regions.absent_phrases,
        other_caption=regions.other_caption,
    )


def check_sets(
    task: TaskModule, config: Stage2Config, tokenizer: PreTrainedTokenizerFast, corpus: Sequence[ShardSet]
) -> None:
    """Whether the training sets can be learned from. Raises ShardError."""
    whole = PromptBuilder(tokenizer, config.max_text) if config.regions.classes == "all" else None
    for shards, source in zip(corpus, config.data.train, strict=True):
        check_set(shards, source.field, whole)


# ---------------------------------------------------------------------------------------------- what it computes


class GroundingTask(TaskModule):
    """Batch -> weighted losses of phrase grounding and detection alike.

    Batch: images (B,3,H,W) uint8 RGB, sizes (B,2) int64 un-padded (h, w), ids and mask (B,L) int64, and the boxes of
    all images packed: boxes (N,4) float xyxy pixels of the resized image, box_image (N,) int64 row of the batch,
    box_tokens (N,L) bool tokens of the box's phrase. Images without boxes are legal, and so is N = 0.
    """

    model: FiberDetector

    def __init__(self, model: FiberDetector, weights: LossWeights = PUBLISHED_WEIGHTS) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def loss_normalisers(self, batch: RegionBatch) -> dict[str, Tensor]:
        """What the losses of this micro-batch are divided by, to be averaged over the micro-batches and ranks of a
        step (`batch["loss_normalisers"]`). Depends on boxes and image size alone."""
        anchors = self.model.anchors(batch["images"])
        positives, centerness = totals(self._assignment(batch, anchors), self._targets(batch), anchors)
        return {
            "positives": positives,
            "centerness": centerness,
            "boxes": positives.new_full((), len(batch["boxes"])),
        }

    def forward(self, batch: RegionBatch) -> Losses:
        """Weighted losses (with graph) and a detached report. Without `batch["loss_normalisers"]`, totals are
        averaged over ranks here in training and taken as they are in evaluation, where ranks may differ in
        batches."""
        output, anchors = self.model(batch["images"], batch["sizes"], batch["ids"], batch["mask"])
        targets = self._targets(batch)
        assignment = self._assignment(batch, anchors)
        mean_totals = totals(assignment, targets, anchors)
        if means := batch.get("loss_normalisers"):
            mean_totals = torch.stack([means["positives"], means["centerness"]])
        elif self.training:
            mean_totals = distributed.all_reduce_mean(mean_totals)
        losses = detection_losses(
            output, anchors, batch["mask"], targets, assignment, mean_totals, self.model.text_limit
        )
        report = {f"loss/{name}": value.detach() for name, value in losses.items()}
        missed = mean_totals.new_ones(len(targets.boxes)).index_fill(0, assignment.target, 0.0).sum()
        report["assignment/positives_per_image"] = mean_totals.new_full(
            (), len(assignment.anchor) / len(batch["ids"])
        )
        report["assignment/boxes_without_anchor"] = missed / (means["boxes"] if means else max(len(targets.boxes), 1))
        report |= self.model.backbone.gates()
        return {name: getattr(self.weights, name) * value for name, value in losses.items()}, report

    def _assignment(self, batch: RegionBatch, anchors: Sequence[Tensor]) -> Assignment:
        """The boxes' anchors, computed once per micro-batch and kept in it."""
        if "assignment" not in batch:
            batch["assignment"] = assign_batch(self._targets(batch), anchors, len(batch["ids"]))
        return batch["assignment"]

    def _targets(self, batch: RegionBatch) -> Targets:
        return Targets(batch["boxes"], batch["box_image"], batch["box_tokens"])


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
    compile_blocks(model, config)
    return model


def build_module(config: Stage2Config, tokenizer: PreTrainedTokenizerBase) -> GroundingTask:
    """The detector and its losses."""
    regions = config.regions
    weights = LossWeights(regions.token_weight, regions.box_weight, regions.centerness_weight)
    return GroundingTask(build_detector(config, tokenizer), weights)


def flops(config: Stage2Config, task: GroundingTask) -> FlopsPerSample | None:
    """By the size of the batch; None where they are not counted (partly frozen models, but for the first image
    stages)."""
    if config.tuning.mode != "full":
        return None
    sides = config.regions.short_sides
    return image_cost(task.model, (min(sides), max(sides)), config.max_text)


# ---------------------------------------------------------------------------------------------- how it is scored


def evaluate(task: GroundingTask, context: EvalContext) -> Figures:
    """Figures of one set by its annotation field (`evaluate_regions`), and a few images with what was detected."""
    config, shards, field = context.config, context.shards, context.field
    regions = config.regions
    asked = PromptBuilder(context.tokenizer, config.max_text), shards, field, EvalImage.of(config)
    size = {"batch": config.eval.batch, "workers": config.data.workers, "chunk_classes": regions.chunk_classes}
    figures = evaluate_regions(task.model, *asked, folder=context.folder, progress=context.progress, **size)
    if distributed.is_main() and context.figures is not None:
        context.figures.parent.mkdir(parents=True, exist_ok=True)
        drawn = draw_predictions(task.model, *asked, count=regions.figures, chunk_classes=regions.chunk_classes)
        prefix = context.figures.with_name(f"{context.figures.name}_{field}")
        for number, image in enumerate(drawn):
            image.save(prefix.with_name(f"{prefix.name}_{number:02d}.png"))
        merged = context.folder / f"{shards.name}_{field}.jsonl"
        write_example_regions(shards, field, merged, prefix, count=regions.figures)
    return figures


# ---------------------------------------------------------------------------------------------- its weights


def start_from(task: GroundingTask, path: str | Path, tokenizer: PreTrainedTokenizerBase) -> LoadReport:
    """Put the weights of a run or export of either stage into the detector of `task`, in place. From an image-level
    model pyramid, head and stage norms stay new; rows of the vocabulary follow their tokens. Raises WeightsError."""
    export, model = read_export(path), task.model
    if "prompt" in export.tensors and model.prompt is None:
        raise WeightsError(f"{path} has a learned prompt, which this run would leave out: set tuning.mode=prompt")
    allowed = NEW_IN_FINE if export.config.stage == "coarse" or export.towers_only else UNREAD_IN_FINE
    vocabulary = (export.tokenizer.get_vocab(), tokenizer.get_vocab())
    same = vocabulary[0] == vocabulary[1]
    return load_weights(model, export.tensors, allow_new=allowed, vocabulary=None if same else vocabulary)


def detector_config(config: Stage2Config, tokenizer: PreTrainedTokenizerBase) -> ExportConfig:
    """What the export of a region-level run says about its model."""
    return ExportConfig(
        stage="fine",
        model=ModelConfig(**vars(config.model)),
        vocab_size=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        image_size=config.regions.test_side,
        max_text=config.max_text,
        max_image_size=config.regions.max_side,
        detector=detector_options(config),
    )


def trained_categories(config: Stage2Config) -> list[str]:
    """The class names of the first detection set that the run trains on, in the order of their ids; without the
    sets at hand, those that the run has exported."""
    for source in config.data.train:
        if source.field == "boxes" and (categories := dataset_info(source.path).get("categories")):
            return list(SetFacts.of(source.path, categories).names)
    return categories_of_export(Path(config.output))


def export(
    config: Stage2Config, tokenizer: PreTrainedTokenizerFast, task: TaskModule, weights: Mapping[str, Tensor]
) -> Export:
    """What the export of a run holds: a plain detector, adapters merged. weights: of the task, by name."""
    tensors = {name.removeprefix("model."): x for name, x in weights.items() if name.startswith("model.")}
    tensors = merge_lora(tensors, config.tuning.lora_alpha, config.tuning.lora_rank)
    return Export(detector_config(config, tokenizer), tensors, tokenizer, [], trained_categories(config), {})


TASK = Task(
    name="regions",
    stage="fine",
    fields=REGION_FIELDS,
    build_sample=build_sample,
    collate=collate_regions,
    build_module=build_module,
    start_from=start_from,
    evaluate=partial(evaluate_sets, evaluate),
    export=export,
    flops=flops,
    verbs={"ground": ("head.*",), "refer": ("head.*",), "detect": ("head.*",)},
    prepare=check_sets,
    headline=("grounding_r1", "referring_p1", "ap", "ap50", "fixed_ap"),
)
