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
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fiber import distributed
from fiber.backbone.states import TextState
from fiber.data.loader import eval_loader
from fiber.data.prompts import SEPARATOR, Prompt, PromptBuilder
from fiber.data.records import Record, image_hash
from fiber.data.shards import ShardSet
from fiber.errors import ShardError
from fiber.evaluation import region_scores
from fiber.evaluation.absent import PhraseBank
from fiber.evaluation.metrics import coco_ap as detection
from fiber.evaluation.metrics import lvis_ap as lvis
from fiber.evaluation.multi_scale import MultiScale, detect_multi_scale
from fiber.evaluation.predictions import PredictionWriter, Row, merge_predictions
from fiber.evaluation.progress import Progress
from fiber.evaluation.region_images import EvalImage, as_list
from fiber.fine.inference import Query, run_queries
from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import DETECTION, REFERRING, BoxSelection, Detections

SCORE_DIGITS, BOX_DIGITS = 6, 2  # of predictions on disk: probability, px
ABSENT_PHRASES = 4  # asked of an image in vain, all in one prompt


# ---------------------------------------------------------------------------------------------- what is asked


Target = tuple[Row, str, list[list[int]]]
"""What identifies a phrase in the predictions, the text it stands in, and its spans there."""


def caption_phrases(record: Record) -> list[Target]:
    """The phrases of a record's captions that have boxes."""
    return [
        ({"image_id": record["image_id"], "caption": c, "phrase": p}, caption["text"], phrase["span"])
        for c, caption in enumerate(record.get("captions", ()))
        for p, phrase in enumerate(caption.get("phrases", ()))
        if phrase.get("boxes")
    ]


def expressions(record: Record) -> list[Target]:
    """The referring expressions of a record: the phrase that stands for the object, or the whole text."""
    return [
        ({"expression_id": region_scores.expression_id(record, n)}, e["text"], e.get("span") or [[0, len(e["text"])]])
        for n, e in enumerate(record.get("expressions", ()))
    ]


@dataclass(frozen=True)
class Phrases:
    """Find the phrases that `targets` lists in a record, with one prompt a text; and, with one more, phrases of
    `bank` that the image does not show."""

    targets: Callable[[Record], list[Target]]
    builder: PromptBuilder
    bank: PhraseBank
    key: tuple[str, ...]
    selection: BoxSelection
    keep: None = None

    def prompts(self, record: Record) -> list[Prompt]:
        """Classes are places in `targets`, then those of absent phrases. A phrase that the text limit cuts off is in
        no prompt: it is a miss."""
        found, place = [], 0
        for (text, _), group in groupby(self.targets(record), key=lambda t: (t[1], t[0].get("caption"))):
            spans = [[(start, end) for start, end in spans] for _, _, spans in group]
            prompt = self.builder.sentence(text, spans)
            seen = prompt.token_map.any(1).nonzero().flatten().tolist()
            if seen:
                classes, own = [place + row for row in seen], [prompt.spans[row] for row in seen]
                found.append(replace(prompt, token_map=prompt.token_map[seen], spans=own, classes=classes))
            place += len(spans)
        absent = self.absent(record)
        return [*found, replace(absent, classes=[place + n for n in absent.classes])] if absent.classes else found

    def absent(self, record: Record) -> Prompt:
        """Phrases that the image does not show, the same whenever they are asked for; those that the text holds."""
        rng = np.random.default_rng([0, image_hash(record["image_id"])])
        phrases = self.bank.absent_phrases(record, ABSENT_PHRASES, rng)
        starts = np.cumsum([0, *(len(phrase) + len(SEPARATOR) for phrase in phrases)]).tolist()
        spans = [[(start, start + len(phrase))] for start, phrase in zip(starts, phrases, strict=False)]
        prompt = self.builder.sentence(SEPARATOR.join(phrases), spans)
        held = int(prompt.token_map.any(1).sum())  # the first ones
        return replace(prompt, token_map=prompt.token_map[:held], spans=spans[:held], classes=list(range(held)))

    def rows(self, record: Record, found: Detections) -> Iterator[Row]:
        """One row per phrase: its boxes, best first."""
        for place, (identity, _, _) in enumerate(self.targets(record)):
            yield identity | {"boxes": rounded(found.boxes[found.labels == place], BOX_DIGITS)}

    def absent_rows(self, record: Record, found: Detections) -> Iterator[Row]:
        """One row per absent phrase: the best score of its detections, 0 where there is none."""
        first, absent = len(self.targets(record)), self.absent(record)
        for number, ((start, end),) in enumerate(absent.spans):
            best = max(rounded(found.scores[found.labels == first + number], SCORE_DIGITS), default=0.0)
            row = {"image_id": record["image_id"], "absent": number, "phrase": absent.text[start:end]}
            yield row | {"score": best}


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
        key: tuple[str, ...] = ("image_id", "caption", "phrase")
        return Phrases(caption_phrases, builder, PhraseBank(shards, field), key, DETECTION)
    if field == "expressions":
        return Phrases(expressions, builder, PhraseBank(shards, field), ("expression_id",), REFERRING)
    if not shards.categories:
        raise ShardError(f"{shards.where}: its dataset.json lists no categories, so there is nothing to look for")
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
    _p5, _p10 and referring_giou_*. Both: grounding_ or referring_absent_false_rate (`absent_rate`), whose rows are
    SET_FIELD_absent.jsonl. "boxes", all classes of the set asked for: the COCO box metrics (ap, ap50, ...);
    of a set with a long tail lvis_ap, lvis_apr, ... and fixed_ap, ...; absent_false_rate. A set without any box has
    no figures. `folder`/SET_boxes_results.json and _annotations.json: see `server_files`.
    """
    asked, world = questions(shards, field, builder, chunk_classes), distributed.world_size()
    training = model.training
    model.eval()
    write_predictions(model, shards, field, asked, image, folder, batch, workers, progress or Progress())
    model.train(training)
    distributed.barrier()
    figures = None
    if distributed.is_main():
        path = merge_predictions(folder, f"{shards.name}_{field}", world, asked.key, shards=shards.where)
        figures = region_scores.score(shards, field, path)
        if isinstance(asked, Phrases):
            asked_for = f"{shards.name}_{field}_absent"
            absent = merge_predictions(folder, asked_for, world, ("image_id", "absent"), shards=shards.where)
            figures |= region_scores.score_absent(field, absent)
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
    # A test set whose boxes are kept secret has no such field, and every image of it is asked.
    secret = field == "boxes" and not shards.count(field)
    per: Literal["image", "every_image"] = "every_image" if secret else "image"
    images = len(shards) if secret else np.count_nonzero(shards.counts(field))
    loader = eval_loader(shards, field, image, as_list, batch=batch, rank=rank, world=world, workers=workers, per=per)
    batches = -(-len(range(rank, images, world)) // batch)
    text = model.encode_prompts(asked.prompts_of_set) if isinstance(asked, Classes) else None
    with ExitStack() as files:
        writer = files.enter_context(PredictionWriter(folder, f"{shards.name}_{field}", rank, world))
        absent = PredictionWriter(folder, f"{shards.name}_{field}_absent", rank, world)
        if isinstance(asked, Phrases):
            files.enter_context(absent)
        for samples in progress(loader, f"{shards.name} {field}", batches):
            for sample, found in predict(model, samples["samples"], asked, batch, text, image.multi_scale):
                for row in asked.rows(sample["record"], found):
                    writer.add(row)
                if isinstance(asked, Phrases):
                    for row in asked.absent_rows(sample["record"], found):
                        absent.add(row)


def predict(
    model: FiberDetector,
    samples: list[dict[str, Any]],
    asked: Phrases | Classes,
    pairs: int,
    text: TextState | None = None,
    multi_scale: MultiScale | None = None,
) -> Iterator[tuple[dict[str, Any], Detections]]:
    """Samples of EvalImage, of any sizes, each with its detections in pixels of the stored image, best first.
    `text`: the prompts as `model.encode_prompts` gives them, where they are the same for all images.
    `multi_scale`: of that EvalImage."""
    records = [sample["record"] for sample in samples]
    searches = [
        Query(sample["image"], (record["width"], record["height"]), asked.prompts(record))
        for sample, record in zip(samples, records, strict=True)
    ]
    if multi_scale is None:
        found = run_queries(model, searches, asked.selection, keep=asked.keep, pairs=pairs, text=text)
    else:
        found = [
            detect_multi_scale(
                model, q.image, q.prompts, asked.selection, multi_scale, keep=asked.keep, pairs=pairs, text=text
            )
            for q in searches
        ]
    return zip(samples, found, strict=True)
