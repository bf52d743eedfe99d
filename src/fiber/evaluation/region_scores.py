"""Merged predictions at region level -> figures, and the files that servers take. One rank alone does this."""

from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from fiber.data.records import Record
from fiber.data.shards import ShardSet
from fiber.errors import ShardError
from fiber.evaluation.metrics import absent_rate
from fiber.evaluation.metrics import coco_ap as detection
from fiber.evaluation.metrics import grounding_recall as grounding
from fiber.evaluation.metrics import lvis_ap as lvis
from fiber.evaluation.metrics.matching import ImageObjects, best_threshold, one_per_place
from fiber.evaluation.predictions import REMEDY, RepeatedError, Row, read_predictions
from fiber.evaluation.server_files import write_server_files
from fiber.fine.postprocess import DETECTION


def score(shards: ShardSet, field: str, path: Path) -> dict[str, float]:
    """Figures of the merged predictions in `path`, see `regions.evaluate_regions`."""
    if field == "boxes":
        # A test set whose boxes are kept secret has no such field, and every image of it is asked.
        chosen = shards.counts(field) if shards.count(field) else [1] * len(shards)
        asked = (shards.record(i) for i, count in enumerate(chosen) if count)
        try:
            return score_boxes(asked, shards.categories, path)
        except RepeatedError as error:
            raise ShardError(f"{shards.where}: {error}; {REMEDY}") from None
    records = (shards.record(i) for i, count in enumerate(shards.counts(field)) if count)
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
    """By the rules of COCO, of LVIS, or both, as the records and categories have it; nothing of a set without any
    box. The server's files are written beside `path`."""
    truth = detection.coco_ground_truth(records, categories)
    long_tail = lvis.has_frequencies(categories)
    per_image = lvis.PER_IMAGE if long_tail else DETECTION.keep
    write_server_files(truth, read_predictions(path), path.with_suffix(""), per_image)
    figures: dict[str, float] = {}
    if not truth["annotations"]:
        return figures
    if not any(image["not_exhaustive_category_ids"] for image in truth["images"]):
        found = detection.coco_ap(truth, read_predictions(path), per_image=DETECTION.keep)
        figures |= {name.lower(): x for name, x in found.items()}
    if long_tail:
        for name, rule in (("lvis", lvis.lvis_ap), ("fixed", lvis.fixed_ap)):
            figures |= prefixed(name, {k.lower(): x for k, x in rule(truth, read_predictions(path)).items()})
    if calibrated := best_threshold(images_of(truth, read_predictions(path))):
        figures |= dict(zip(("detect_threshold", "detect_f1"), calibrated, strict=True))
    rate = absent_rate.absent_class_rate(truth, read_predictions(path))
    return figures if rate is None else figures | {"absent_false_rate": rate}


def images_of(
    truth: Mapping[str, Any], predictions: Iterator[Row]
) -> Iterator[tuple[ImageObjects, np.ndarray, ImageObjects]]:
    """Per image of `truth` (a COCO annotation dict), in its order: the detections, best first and one per place,
    their scores (D,), and the objects. In a set where objects may be missing, the detections of an image are those of
    classes that it shows or is known not to show. predictions: merged rows, an image's together and best first.
    """
    objects: dict[Any, list[Row]] = {image["id"]: [] for image in truth["images"]}
    for entry in truth["annotations"]:
        objects[entry["image_id"]].append(entry)
    found = {
        identity: list(islice(rows, DETECTION.keep))
        for identity, rows in groupby(predictions, key=lambda row: row["image_id"])
    }
    federated = any(image["not_exhaustive_category_ids"] for image in truth["images"])
    for image in truth["images"]:
        own, rows = objects[image["id"]], found.get(image["id"], [])
        if federated:
            judged = {entry["category_id"] for entry in own} | set(image["neg_category_ids"])
            judged -= set(image["not_exhaustive_category_ids"])
            rows = [row for row in rows if row["category_id"] in judged]
        boxes = corners(rows)
        kept = one_per_place(boxes)
        yield (
            ImageObjects(boxes[kept], [rows[k]["category_id"] for k in kept]),
            np.array([rows[k]["score"] for k in kept]),
            ImageObjects(
                corners(own), [entry["category_id"] for entry in own], [bool(entry["iscrowd"]) for entry in own]
            ),
        )


def corners(rows: list[Row]) -> np.ndarray:
    """The boxes [x, y, w, h] of COCO's rows as (N,4) [x0, y0, x1, y1]."""
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def score_absent(field: str, path: Path) -> dict[str, float]:
    """The rate of absent phrases, from their merged rows; no figure where no phrase is known to be absent."""
    name = {"captions": "grounding", "expressions": "referring"}[field]
    rate = absent_rate.absent_phrase_rate(read_predictions(path))
    return {} if rate is None else {f"{name}_absent_false_rate": rate}


def expression_id(record: Record, number: int) -> str | int:
    """The id of an expression in its data set, or one made of the image's."""
    return record["expressions"][number].get("id", f"{record['image_id']}#{number}")


def prefixed(name: str, figures: dict[str, float]) -> dict[str, float]:
    """Figures under `name`_KEY."""
    return {f"{name}_{key}": x for key, x in figures.items()}
