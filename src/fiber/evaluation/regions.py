"""Evaluation at region level: phrase grounding, referring expressions and box AP of a detector over shards.

Each rank takes its share of the pictures and streams its predictions to a file; one rank merges and scores them. So
memory does not grow with the set, and figures depend neither on the number of ranks nor on the batch size: a picture
is padded to its own multiple of 32 and computed together with those of the same size only, because windows, norms and
averages of the model see the padding.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fiber import distributed
from fiber.data.records import Record, Sample
from fiber.data.shards import ShardSet
from fiber.data.stream import eval_loader
from fiber.evaluation import detection, grounding
from fiber.evaluation.gallery import Meter
from fiber.evaluation.predictions import PredictionWriter, Row, merge_predictions, read_predictions
from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import DETECTION, GROUNDING, Detections, Selection
from fiber.fine.prompts import Prompt, PromptBuilder
from fiber.fine.samples import MULTIPLE, fitted, open_image, pad_images, resize

SCORE_DIGITS, BOX_DIGITS = 6, 2  # of predictions on disk: probability, px


@dataclass(frozen=True)
class WholePicture:
    """make_sample of evaluation: the whole picture with its short side at `short`, its long side at most `longest`
    (px), uint8 (3,h,w), and its record."""

    short: int
    longest: int

    def __call__(self, sample: Sample, field: str, annotation: int, rng: np.random.Generator) -> dict[str, Any]:
        """Raises SampleFault."""
        image = open_image(sample)
        size = fitted(image.shape[1], image.shape[0], self.short, self.longest)
        return {"image": resize(image, *size), "record": sample.record}


def as_list(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of pictures of any sizes."""
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
    """The id of an expression in its data set, or one made of the picture's."""
    return record["expressions"][number].get("id", f"{record['image_id']}#{number}")


@dataclass(frozen=True)
class Phrases:
    """Find the phrases that `targets` lists in a record, with one prompt a text."""

    targets: Callable[[Record], list[Target]]
    builder: PromptBuilder
    key: tuple[str, ...]
    selection: Selection = GROUNDING
    keep: None = None

    def prompts(self, record: Record) -> list[Prompt]:
        """Classes are places in `targets`. A phrase that the text limit cuts off is in no prompt: it is a miss."""
        found, place = [], 0
        for (text, _), group in groupby(self.targets(record), key=lambda t: (t[1], t[0].get("caption"))):
            spans = [spans for _, _, spans in group]
            prompt = self.builder.sentence(text, spans)
            seen = prompt.token_map.any(1).nonzero().flatten().tolist()
            if seen:
                classes, own = [place + row for row in seen], [prompt.spans[row] for row in seen]
                found.append(replace(prompt, token_map=prompt.token_map[seen], spans=own, classes=classes))
            place += len(spans)
        return found

    def rows(self, record: Record, found: Detections) -> Iterator[Row]:
        """One row a phrase: its boxes, best first."""
        for place, (identity, _, _) in enumerate(self.targets(record)):
            yield identity | {"boxes": rounded(found.boxes[found.labels == place], BOX_DIGITS)}


@dataclass(frozen=True)
class Classes:
    """Find the classes of a data set: `prompts_of_set` hold them all, `ids` are the category ids in their order."""

    prompts_of_set: list[Prompt]
    ids: list[int]
    selection: Selection = DETECTION
    keep: int = DETECTION.keep
    key: tuple[str, ...] = detection.ROW_KEY

    def prompts(self, record: Record) -> list[Prompt]:
        """The same for every picture."""
        return self.prompts_of_set

    def rows(self, record: Record, found: Detections) -> Iterator[Row]:
        """One row a detection, in the COCO results format."""
        boxes = found.boxes.clone()
        boxes[:, 2:] -= boxes[:, :2]
        scores = rounded(found.scores, SCORE_DIGITS)
        for box, score, label in zip(rounded(boxes, BOX_DIGITS), scores, found.labels.tolist(), strict=True):
            yield {"image_id": record["image_id"], "category_id": self.ids[label], "bbox": box, "score": score}


def questions(shards: ShardSet, field: str, builder: PromptBuilder) -> Phrases | Classes:
    """What to ask a detector about the pictures of a set, by annotation field."""
    if field == "boxes":
        names = [category["name"] for category in shards.categories]
        return Classes(builder.chunks(names), [category["id"] for category in shards.categories])
    if field == "captions":
        return Phrases(caption_phrases, builder, ("image_id", "caption", "phrase"))
    return Phrases(expressions, builder, ("expression_id",))


def rounded(values: torch.Tensor, digits: int) -> list:
    """A tensor as nested lists of numbers that print short."""
    return values.double().round(decimals=digits).tolist()


# ---------------------------------------------------------------------------------------------- evaluation


def evaluate_regions(
    model: FiberDetector,
    builder: PromptBuilder,
    shards: ShardSet,
    field: str,
    picture: WholePicture,
    *,
    folder: str | Path,
    batch: int = 8,
    workers: int = 0,
    meter: Meter | None = None,
) -> dict[str, float]:
    """Figures (fractions) over a whole set; all ranks must call, and all get them. Predictions are left in
    `folder`/SET_FIELD.jsonl.

    field "captions": grounding_r1, _r5, _r10, _upper_bound by the ANY protocol, merged_* by the other, and
    class_agnostic_*, what a perfect localiser that ignores the words would get (ANY). "expressions": referring_p1,
    _p5, _p10 and referring_giou_*. "boxes": the COCO box metrics (ap, ap50, ...), all classes of the set asked for.
    """
    asked = questions(shards, field, builder)
    name, rank, world = f"{shards.name}_{field}", distributed.rank(), distributed.world_size()
    loader = eval_loader(
        shards, field, picture, as_list, batch=batch, rank=rank, world=world, workers=workers, per="image"
    )
    training = model.training
    model.eval()
    with PredictionWriter(folder, name, rank, world) as writer:
        for samples in (meter or Meter())(loader, f"{shards.name} {field}"):
            for sample, found in predict(model, samples["samples"], asked, batch):
                for row in asked.rows(sample["record"], found):
                    writer.add(row)
    model.train(training)
    distributed.barrier()
    figures = None
    if distributed.is_main():
        path = merge_predictions(folder, name, world, asked.key)
        figures = score(shards, field, path)
    return distributed.broadcast_object(figures)


def predict(
    model: FiberDetector, samples: Iterable[dict[str, Any]], asked: Phrases | Classes, pairs: int
) -> Iterator[tuple[dict[str, Any], Detections]]:
    """Samples of WholePicture, of any sizes, each with its detections in pixels of the stored picture, best first;
    `pairs` (picture, prompt) pairs are computed at a time. In an order of its own."""
    device = next(model.parameters()).device
    for _, group in groupby(sorted(samples, key=padded_size), key=padded_size):
        askable, prompts = [], []
        for sample in group:
            if own := asked.prompts(sample["record"]):
                askable.append(sample)
                prompts.append(own)
            else:
                yield sample, Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        if askable:
            images, sizes = pad_images([sample["image"] for sample in askable])
            where = images.to(device), sizes.to(device)
            found = model.detect(*where, prompts, asked.selection, keep=asked.keep, pairs=pairs)
            for sample, one in zip(askable, found, strict=True):
                yield sample, in_stored_pixels(one, sample)


def padded_size(sample: dict[str, Any]) -> tuple[int, int]:
    """(H, W) of a picture when it is padded alone."""
    height, width = sample["image"].shape[1:]
    return -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE


def in_stored_pixels(found: Detections, sample: dict[str, Any]) -> Detections:
    """Detections of a resized picture, on the CPU and in pixels of the stored one."""
    height, width = sample["image"].shape[1:]
    record = sample["record"]
    scale = torch.tensor([record["width"] / width, record["height"] / height] * 2)
    return Detections(found.boxes.float().cpu() * scale, found.scores.float().cpu(), found.labels.cpu())


def score(shards: ShardSet, field: str, path: Path) -> dict[str, float]:
    """Figures of merged predictions."""
    records = (shards.record(i) for i, count in enumerate(shards.counts(field)) if count)
    if field == "boxes":
        truth = detection.coco_ground_truth(records, shards.categories)
        return {name.lower(): x for name, x in detection.coco_ap(truth, read_predictions(path)).items()}
    if field == "expressions":
        targets = {
            expression_id(record, n): record["boxes"][e["box"]]["box"]
            for record in records
            for n, e in enumerate(record["expressions"])
        }
        found = grounding.referring_precision(targets, read_predictions(path))
        return {f"referring_{name}": x for name, x in found.items()}
    phrases = [phrase for record in records for phrase in grounding.phrases_of(record)]
    figures = {}
    for name, merged in (("grounding", False), ("merged", True)):
        recall = grounding.phrase_recall(phrases, read_predictions(path), merged)
        figures |= {f"{name}_{k}": x for k, x in recall.items() if k != "by_type"}
    return figures | {f"class_agnostic_{k}": x for k, x in grounding.class_agnostic_recall(phrases).items()}
