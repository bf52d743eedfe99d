"""Evaluation at region level: phrase grounding, referring expressions and box AP of a detector over shards.

Each rank takes its share of the images and streams its predictions to a file; one rank merges and scores them. So
the memory of predicting does not grow with the set, and figures depend neither on the number of ranks nor on the
batch size (see `fine.inference`).

A set of boxes whose categories have a `frequency` has a long tail and is scored by the rules of LVIS. It is scored by
COCO's rules too, unless its records say that objects may be missing (`not_exhaustive_categories`): there an unmatched
detection proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fiber import distributed
from fiber.backbone.states import TextState
from fiber.config.stage2 import Stage2Config
from fiber.data.loader import eval_loader
from fiber.data.prompts import Prompt, PromptBuilder
from fiber.data.records import Record, Sample
from fiber.data.samples.regions import read_image
from fiber.data.shards import ShardSet
from fiber.errors import ShardError
from fiber.evaluation.metrics import coco_ap as detection
from fiber.evaluation.metrics import grounding_recall as grounding
from fiber.evaluation.metrics import lvis_ap as lvis
from fiber.evaluation.predictions import PredictionWriter, Row, merge_predictions, read_predictions
from fiber.evaluation.progress import Progress
from fiber.fine.inference import Query, fit, run_queries
from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import DETECTION, GROUNDING, BoxSelection, Detections

SCORE_DIGITS, BOX_DIGITS = 6, 2  # of predictions on disk: probability, px


@dataclass(frozen=True)
class EvalImage:
    """make_sample of evaluation: the whole image with its short side at `short`, its long side at most `longest`
    (px), uint8 (3,h,w), and its record."""

    short: int
    longest: int

    @classmethod
    def of(cls, config: Stage2Config) -> EvalImage:
        """As the run's configuration says."""
        return cls(config.regions.test_side, config.regions.max_side)

    def __call__(self, sample: Sample, field: str, annotation: int, rng: np.random.Generator) -> dict[str, Any]:
        """Raises SampleFault."""
        return {"image": fit(read_image(sample), self.short, self.longest), "record": sample.record}


def as_list(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of images of any sizes."""
    return {"samples": samples}


# ---------------------------------------------------------------------------------------------- what is asked


Target = tuple[Row, str, list[list[int]]]
"""What identifies a phrase in the predictions, the text it stands in, and its spans there."""


def caption_phrases(record: Record) -> list[Target]:
    """The phrases of a record's captions that have boxes."""
    return [
        ({"image_id": record["image_id"], "caption": c, "phrase": p}, caption["text"], phrase["span"])
        for c, caption in enumerate(record.get("captions", ()))
        for p, phrase in enumerate(caption.get("phrases", ()))
        if phrase["boxes"]
    ]


def expressions(record: Record) -> list[Target]:
    """The referring expressions of a record: the phrase that stands for the object, or the whole text."""
    return [
        ({"expression_id": expression_id(record, n)}, e["text"], e.get("span") or [[0, len(e["text"])]])
        for n, e in enumerate(record.get("expressions", ()))
    ]


def expression_id(record: Record, number: int) -> str | int:
    """The id of an expression in its data set, or one made of the image's."""
    return record["expressions"][number].get("id", f"{record['image_id']}#{number}")


@dataclass(frozen=True)
class Phrases:
    """Find the phrases that `targets` lists in a record, with one prompt a text."""

    targets: Callable[[Record], list[Target]]
    builder: PromptBuilder
    key: tuple[str, ...]
    selection: BoxSelection = GROUNDING
    keep: None = None

    def prompts(self, record: Record) -> list[Prompt]:
        """Classes are places in `targets`. A phrase that the text limit cuts off is in no prompt: it is a miss."""
        found, place = [], 0
        for (text, _), group in groupby(self.targets(record), key=lambda t: (t[1], t[0].get("caption"))):
            spans = [[(start, end) for start, end in spans] for _, _, spans in group]
            prompt = self.builder.sentence(text, spans)
            seen = prompt.token_map.any(1).nonzero().flatten().tolist()
            if seen:
                classes, own = [place + row for row in seen], [prompt.spans[row] for row in seen]
                found.append(replace(prompt, token_map=prompt.token_map[seen], spans=own, classes=classes))
            place += len(spans)
        return found

    def rows(self, record: Record, found: Detections) -> Iterator[Row]:
        """One row per phrase: its boxes, best first."""
        for place, (identity, _, _) in enumerate(self.targets(record)):
            yield identity | {"boxes": rounded(found.boxes[found.labels == place], BOX_DIGITS)}


@dataclass(frozen=True)
class Classes:
    """Find the classes of a data set: `prompts_of_set` hold them all, `ids` are the category ids by class.
    `selection` limits the detections of a prompt, `keep` those of an image."""

    prompts_of_set: list[Prompt]
    ids: list[int]
    selection: BoxSelection = DETECTION
    keep: int | None = DETECTION.keep
    key: tuple[str, ...] = detection.ROW_KEY

    def prompts(self, record: Record) -> list[Prompt]:
        """The same for every image."""
        return self.prompts_of_set

    def rows(self, record: Record, found: Detections) -> Iterator[Row]:
        """One row a detection, in the COCO results format."""
        boxes = found.boxes.clone()
        boxes[:, 2:] -= boxes[:, :2]
        scores = rounded(found.scores, SCORE_DIGITS)
        columns = zip(rounded(boxes, BOX_DIGITS), scores, found.labels.tolist(), strict=True)
        for place, (box, score, label) in enumerate(columns):
            row = {"image_id": record["image_id"], "place": place, "category_id": self.ids[label]}
            yield row | {"bbox": box, "score": score}


def questions(
    shards: ShardSet, field: str, builder: PromptBuilder, chunk_classes: int | None = None
) -> Phrases | Classes:
    """What to ask a detector about the images of a set, by annotation field.

    Classes are asked in the order of their ids, however the set lists them, at most `chunk_classes` a prompt
    (default: as many as the text limit holds). With a long tail each prompt has LVIS's number of detections and a
    image no limit of its own, which fixed AP wants. Raises ShardError where the set lists no categories.
    """
    if field == "captions":
        return Phrases(caption_phrases, builder, ("image_id", "caption", "phrase"))
    if field == "expressions":
        return Phrases(expressions, builder, ("expression_id",))
    if not shards.categories:
        raise ShardError(f"{shards.path}: its dataset.json lists no categories, so there is nothing to look for")
    categories = sorted(shards.categories, key=lambda category: category["id"])
    prompts = builder.chunks([category["name"] for category in categories], chunk_classes)
    ids = [category["id"] for category in categories]
    if lvis.has_frequencies(categories):
        return Classes(prompts, ids, replace(DETECTION, keep=lvis.PER_IMAGE), keep=None)
    return Classes(prompts, ids)


def rounded(values: torch.Tensor, digits: int) -> list:
    """A tensor as nested lists of numbers that print short."""
    return values.double().round(decimals=digits).tolist()


# ---------------------------------------------------------------------------------------------- evaluation


def evaluate_regions(
    model: FiberDetector,
    builder: PromptBuilder,
    shards: ShardSet,
    field: str,
    image: EvalImage,
    *,
    folder: str | Path,
    batch: int = 8,
    workers: int = 0,
    chunk_classes: int | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Figures (fractions) over a whole set; all ranks must call, and all get them. Predictions are left in
    `folder`/SET_FIELD.jsonl. `batch` images are read, and as many (image, prompt) pairs computed, at a time.

    field "captions": grounding_r1, _r5, _r10, _upper_bound by the ANY protocol, merged_* by the other, and
    class_agnostic_*, what a perfect localiser that ignores the words would get (ANY). "expressions": referring_p1,
    _p5, _p10 and referring_giou_*. "boxes", all classes of the set asked for: the COCO box metrics (ap, ap50, ...);
    of a set with a long tail lvis_ap, lvis_apr, ... and fixed_ap, ...
    """
    asked, world = questions(shards, field, builder, chunk_classes), distributed.world_size()
    training = model.training
    model.eval()
    write_predictions(model, shards, field, asked, image, folder, batch, workers, progress or Progress())
    model.train(training)
    distributed.barrier()
    figures = None
    if distributed.is_main():
        figures = score(shards, field, merge_predictions(folder, f"{shards.name}_{field}", world, asked.key))
    return distributed.broadcast_object(figures)


def write_predictions(
    model: FiberDetector,
    shards: ShardSet,
    field: str,
    asked: Phrases | Classes,
    image: EvalImage,
    folder: str | Path,
    batch: int,
    workers: int,
    progress: Progress,
) -> None:
    """This rank's share of the predictions, row by row into its file: the memory is that of a batch."""
    rank, world = distributed.rank(), distributed.world_size()
    loader = eval_loader(
        shards, field, image, as_list, batch=batch, rank=rank, world=world, workers=workers, per="image"
    )
    batches = -(-len(range(rank, np.count_nonzero(shards.counts(field)), world)) // batch)
    text = model.encode_prompts(asked.prompts_of_set) if isinstance(asked, Classes) else None
    with PredictionWriter(folder, f"{shards.name}_{field}", rank, world) as writer:
        for samples in progress(loader, f"{shards.name} {field}", batches):
            for sample, found in predict(model, samples["samples"], asked, batch, text):
                for row in asked.rows(sample["record"], found):
                    writer.add(row)


def predict(
    model: FiberDetector,
    samples: list[dict[str, Any]],
    asked: Phrases | Classes,
    pairs: int,
    text: TextState | None = None,
) -> Iterator[tuple[dict[str, Any], Detections]]:
    """Samples of EvalImage, of any sizes, each with its detections in pixels of the stored image, best first.
    `text`: the prompts as `model.read` gives them, where they are the same for all images."""
    records = [sample["record"] for sample in samples]
    searches = [
        Query(sample["image"], (record["width"], record["height"]), asked.prompts(record))
        for sample, record in zip(samples, records, strict=True)
    ]
    found = run_queries(model, searches, asked.selection, keep=asked.keep, pairs=pairs, text=text)
    return zip(samples, found, strict=True)


def score(shards: ShardSet, field: str, path: Path) -> dict[str, float]:
    """Figures of merged predictions, see `evaluate_regions`."""
    records = (shards.record(i) for i, count in enumerate(shards.counts(field)) if count)
    if field == "boxes":
        return score_boxes(records, shards.categories, path)
    if field == "expressions":
        targets = {
            expression_id(record, n): record["boxes"][e["box"]]["box"]
            for record in records
            for n, e in enumerate(record["expressions"])
        }
        return prefixed("referring", grounding.referring_precision(targets, read_predictions(path)))
    phrases = [phrase for record in records for phrase in grounding.phrases_of(record)]
    figures: dict[str, float] = {}
    for name, merged in (("grounding", False), ("merged", True)):
        recall = grounding.phrase_recall(phrases, read_predictions(path), merged)
        figures |= prefixed(name, {k: x for k, x in recall.items() if k != "by_type"})
    return figures | prefixed("class_agnostic", grounding.class_agnostic_recall(phrases))


def score_boxes(records: Iterator[Record], categories: list[dict[str, Any]], path: Path) -> dict[str, float]:
    """By the rules of COCO, of LVIS, or both, as the records and categories have it."""
    truth = detection.coco_ground_truth(records, categories)
    figures: dict[str, float] = {}
    if not any(image["not_exhaustive_category_ids"] for image in truth["images"]):
        found = detection.coco_ap(truth, read_predictions(path), per_image=DETECTION.keep)
        figures |= {name.lower(): x for name, x in found.items()}
    if lvis.has_frequencies(categories):
        for name, rule in (("lvis", lvis.lvis_ap), ("fixed", lvis.fixed_ap)):
            figures |= prefixed(name, {k.lower(): x for k, x in rule(truth, read_predictions(path)).items()})
    return figures


def prefixed(name: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{name}_{key}": x for key, x in figures.items()}
