"""Box average precision by the COCO rules, through pycocotools, from predictions streamed off a file.

Predictions are rows in the COCO results format, `{"image_id", "category_id", "bbox": [x, y, width, height],
"score"}`, in pixels of the stored image; images without detections have no row. "place", the number of a row among
those of its image, makes rows unique and keeps their order, which decides between equal scores, through
`predictions.merge_predictions(..., key=ROW_KEY)` for any number of ranks; scoring does not need it.
"""

import contextlib
import io
import itertools
import math
import re
from array import array
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fiber.evaluation.predictions import RepeatedError, Row

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

ROW_KEY = ("image_id", "place")
COCO_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs", "ARm", "ARl")


@dataclass
class DetectionColumns:
    """N detections as columns: index of the image and of the category in the sorted lists they were read with (N,)
    int64, boxes (N,4) float64 xywh, scores (N,) float64."""

    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: np.ndarray) -> "DetectionColumns":
        return DetectionColumns(self.image[index], self.category[index], self.boxes[index], self.scores[index])

    def best(self, group: np.ndarray, k: int) -> "DetectionColumns":
        """The k highest scores of each group (N,), in their old order; among equal scores the earlier stay."""
        order = np.lexsort((-self.scores, group))  # stable
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        sizes = np.diff(starts, append=len(order))
        place = np.arange(len(order)) - np.repeat(starts, sizes)
        return self[np.sort(order[place < k])]


def coco_ground_truth(
    records: Iterable[Mapping[str, Any]], categories: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A COCO (and LVIS) annotation dict from records and the categories of their `dataset.json`.

    Every record is an image to be scored, boxes or none; boxes without a stored area get width x height. ValueError
    names an image that comes twice or a box without category.
    """
    images: dict[str, dict] = {}
    annotations: list[dict] = []
    for record in records:
        identity = record["image_id"]
        if identity in images:
            raise RepeatedError(f"image {identity!r} comes twice")
        images[identity] = {"id": identity, "width": record["width"], "height": record["height"]}
        images[identity]["neg_category_ids"] = list(record.get("negative_categories", ()))
        images[identity]["not_exhaustive_category_ids"] = list(record.get("not_exhaustive_categories", ()))
        for number, box in enumerate(record.get("boxes", ())):
            if "category" not in box:
                raise ValueError(f"image {identity!r}: boxes[{number}] has no category")
            x0, y0, x1, y1 = box["box"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": identity,
                    "category_id": box["category"],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": box.get("area", (x1 - x0) * (y1 - y0)),
                    "iscrowd": int(bool(box.get("crowd"))),
                }
            )
    return {"images": list(images.values()), "annotations": annotations, "categories": [dict(c) for c in categories]}


def coco_ap(
    ground_truth: Mapping[str, Any], predictions: Iterable[Row], per_image: int | None = None
) -> dict[str, float]:
    """The twelve COCO box metrics over all images of `ground_truth` (the content of an annotation file).

    per_image: how many of the best-scored detections of each image to keep; None for all (COCO's own limit of 100
    is one an image and category).
    Returns fractions under the names COCO_STATS; -1 where no object of that size exists. ValueError names a row that
    is malformed or whose image or category is unknown.
    """
    return dict(zip(COCO_STATS, coco_scorer(ground_truth, predictions, per_image).stats.tolist(), strict=True))


def coco_scorer(
    ground_truth: Mapping[str, Any], predictions: Iterable[Row], per_image: int | None = None
) -> "COCOeval":
    """As `coco_ap`: the scorer when it has done its work. Its `eval["precision"]` (10 IoUs, 101 recalls, categories
    in the order of their ids, 4 areas, 3 limits) is -1 where there is no object."""
    image_ids, category_ids = sorted_ids(ground_truth, "images"), sorted_ids(ground_truth, "categories")
    found = read_detections(predictions, image_ids, category_ids, per_image=per_image)
    # pycocotools sorts ids in its own way: it gets numbers in our order. And it prints as it goes.
    number_of = {identity: number for number, identity in enumerate(image_ids)}
    images = [{**image, "id": number_of[image["id"]]} for image in ground_truth["images"]]
    objects = [{**entry, "image_id": number_of[entry["image_id"]]} for entry in ground_truth["annotations"]]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _coco(images, ground_truth["categories"], objects)
        results = [
            {
                "id": number + 1,
                "image_id": int(found.image[number]),
                "category_id": category_ids[found.category[number]],
                "bbox": found.boxes[number].tolist(),
                "score": float(found.scores[number]),
                "area": float(found.boxes[number, 2] * found.boxes[number, 3]),
                "iscrowd": 0,
            }
            for number in range(len(found))
        ]
        from pycocotools.cocoeval import COCOeval  # of the extra `train`: a trained model works without it

        scorer = COCOeval(truth, _coco(images, ground_truth["categories"], results), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return scorer


def read_detections(
    rows: Iterable[Row],
    image_ids: Sequence[Hashable],
    category_ids: Sequence[int],
    per_image: int | None = None,
    per_category: int | None = None,
    prune_at: int = 4_000_000,
) -> DetectionColumns:
    """Read rows into columns of 48 bytes a detection, checking each.

    per_image or per_category: keep only so many best-scored rows of each image or category. The others are
    dropped on the way, whenever `prune_at` new rows have come in, so that memory is bounded.
    """
    if per_image is not None and per_category is not None:
        raise ValueError("detections are limited by image or by category: pruning on the way is exact for one alone")
    image_index = {identity: index for index, identity in enumerate(image_ids)}
    category_index = {identity: index for index, identity in enumerate(category_ids)}
    kept = DetectionColumns(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))
    images, categories, numbers = array("q"), array("q"), array("d")

    def collect() -> DetectionColumns:
        new = np.array(numbers).reshape(-1, 5)
        merged = DetectionColumns(
            np.concatenate([kept.image, np.array(images, dtype=np.int64)]),
            np.concatenate([kept.category, np.array(categories, dtype=np.int64)]),
            np.concatenate([kept.boxes, new[:, :4]]),
            np.concatenate([kept.scores, new[:, 4]]),
        )
        if per_image is not None:
            return merged.best(merged.image, per_image)
        return merged if per_category is None else merged.best(merged.category, per_category)

    for row in rows:
        _check_row(row, image_index, category_index)
        images.append(image_index[row["image_id"]])
        categories.append(category_index[row["category_id"]])
        numbers.extend((*row["bbox"], row["score"]))
        if len(images) >= prune_at and not (per_image is None and per_category is None):
            kept = collect()
            images, categories, numbers = array("q"), array("q"), array("d")
    return collect()


def sorted_ids(ground_truth: Mapping[str, Any], field: str) -> list:
    """The ids of "images" or "categories", sorted; ValueError names one that comes twice or says there is none.

    Numbers within ids count as numbers: that order decides between equal scores on different images, and official
    tools have it by the plain numbers that ids like "coco_139" are made of.
    """
    ids = sorted((entry["id"] for entry in ground_truth[field]), key=_natural)
    twice = next((a for a, b in itertools.pairwise(ids) if a == b), None)
    if twice is not None or not ids:
        raise ValueError(f"ground truth: {field} {twice!r} comes twice" if ids else f"ground truth has no {field}")
    return ids


def _natural(identity: Hashable) -> tuple:
    if not isinstance(identity, str):
        return (identity,)
    pieces = re.split(r"([0-9]+)", identity)  # every second one a number
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], identity


def _check_row(row: Row, images: Collection[Hashable], categories: Collection[int]) -> None:
    try:
        image, category, (*_, width, height), score = (row[f] for f in ("image_id", "category_id", "bbox", "score"))
        sound = len(row["bbox"]) == 4 and all(map(math.isfinite, (*row["bbox"], score))) and min(width, height) >= 0
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(
            f"detection {row!r} must have image_id, category_id, score and bbox [x, y, w, h], all finite"
        )
    if image not in images:
        raise ValueError(f"detection on image {image!r}, which is not in the ground truth")
    if category not in categories:
        raise ValueError(f"detection of category {category!r} on image {image!r}: no such category")


def _coco(images: list[dict], categories: Sequence[Mapping[str, Any]], annotations: list[dict]) -> Any:
    """pycocotools' own object; it writes into the annotations."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco
