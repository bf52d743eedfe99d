"""LVIS box average precision: the federated protocol, standard and "fixed", without the `lvis` package.

Federated: a category is judged on an image only where annotators looked for it (it is present, or listed among the
image's negatives); where they may have missed instances ("not exhaustive") unmatched detections count neither way.

Two limits on detections give two numbers. Standard AP keeps the 300 best of each image over all categories. Fixed
AP (Dave et al., 2021), which MDETR, GLIP and FIBER report, keeps the 10,000 best of each category over the whole data
set and knows no limit per image. Both end in APr, APc, APf: the mean over rare, common and frequent categories.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fiber.evaluation.metrics.coco_ap import DetectionColumns, read_detections, sorted_ids
from fiber.evaluation.predictions import Row

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREAS = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}  # pixels, both ends in
FREQUENCIES = ("r", "c", "f")
PER_IMAGE, PER_CATEGORY = 300, 10_000  # detections that standard and fixed AP look at


def has_frequencies(categories: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a set can be scored by these rules: all its categories have a frequency."""
    return bool(categories) and all("frequency" in category for category in categories)


def lvis_ap(
    ground_truth: Mapping[str, Any],
    predictions: Iterable[Row],
    per_image: int | None = PER_IMAGE,
    per_category: int | None = None,
) -> dict[str, float]:
    """Federated box AP over all images of `ground_truth` (the content of an LVIS annotation file).

    predictions: rows in the COCO results format. per_image or per_category: how many of the best-scored detections of
    each image or category to keep; None for all. Memory is bounded by what is kept.
    Returns fractions AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR, ARs, ARm, ARl; -1 where no category has ground
    truth. ValueError names a malformed row, an unknown image or category, or a category without frequency.
    """
    image_ids, category_ids = sorted_ids(ground_truth, "images"), sorted_ids(ground_truth, "categories")
    frequency = {category["id"]: category.get("frequency") for category in ground_truth["categories"]}
    unknown = next((key for key, value in frequency.items() if value not in FREQUENCIES), None)
    if unknown is not None:
        raise ValueError(f"LVIS category {unknown} has frequency {frequency[unknown]!r}, not one of r, c, f")
    found = read_detections(predictions, image_ids, category_ids, per_image, per_category)
    truth = _read_truth(ground_truth, image_ids, category_ids)
    precision, recall = _score_categories(found, truth, len(category_ids))
    rarity = np.array([frequency[category] for category in category_ids])
    return _summary(precision, recall, rarity)


def fixed_ap(
    ground_truth: Mapping[str, Any], predictions: Iterable[Row], per_category: int = PER_CATEGORY
) -> dict[str, float]:
    """Fixed AP: `lvis_ap` over the best `per_category` detections of each category, however many on an image."""
    return lvis_ap(ground_truth, predictions, per_image=None, per_category=per_category)


@dataclass
class _Truth:
    """Per category index, {image index: boxes xywh (G,4) and areas (G,)}; images judged; images not exhaustive."""

    objects: list[dict[int, tuple[np.ndarray, np.ndarray]]]
    judged: list[set[int]]
    not_exhaustive: list[set[int]]


def _read_truth(ground_truth: Mapping[str, Any], image_ids: list, category_ids: list) -> _Truth:
    image_index = {identity: index for index, identity in enumerate(image_ids)}
    category_index = {identity: index for index, identity in enumerate(category_ids)}
    gathered: list[dict[int, list]] = [defaultdict(list) for _ in category_ids]
    for entry in ground_truth["annotations"]:
        image, category = entry["image_id"], entry["category_id"]
        if image not in image_index or category not in category_index:
            raise ValueError(
                f"LVIS annotation {entry.get('id')}: image {image!r} or category {category!r} is unknown"
            )
        gathered[category_index[category]][image_index[image]].append((*entry["bbox"], entry["area"]))
    judged = [set(objects) for objects in gathered]
    not_exhaustive: list[set[int]] = [set() for _ in category_ids]
    for image in ground_truth["images"]:
        for field, images in (("neg_category_ids", judged), ("not_exhaustive_category_ids", not_exhaustive)):
            if field not in image:
                raise ValueError(f"LVIS image {image['id']!r} has no {field}")
            for category in image[field]:
                if category not in category_index:
                    raise ValueError(f"LVIS image {image['id']!r}: {field} names the unknown category {category!r}")
                images[category_index[category]].add(image_index[image["id"]])
    objects = []
    for by_image in gathered:
        arrays = {index: np.array(rows, dtype=np.float64) for index, rows in sorted(by_image.items())}
        objects.append({index: (rows[:, :4].copy(), rows[:, 4]) for index, rows in arrays.items()})
    return _Truth(objects, judged, not_exhaustive)


def _score_categories(found: DetectionColumns, truth: _Truth, categories: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision (areas, thresholds, recall levels, categories), recall (areas, thresholds, categories); -1: none."""
    precision = -np.ones((len(AREAS), len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), categories))
    recall = -np.ones((len(AREAS), len(IOU_THRESHOLDS), categories))
    order = np.lexsort((-found.scores, found.image, found.category))  # stable: equal scores stay in reading order
    bounds = np.searchsorted(found.category[order], np.arange(categories + 1))
    for category in range(categories):
        if not truth.objects[category]:
            continue
        mine = found[order[bounds[category] : bounds[category + 1]]]
        judged = np.fromiter(sorted(truth.judged[category]), dtype=np.int64)
        mine = mine[np.isin(mine.image, judged)]
        matched, ignored, totals = _match_category(mine, truth, category)
        best_first = np.argsort(-mine.scores, kind="stable")
        for area, total in enumerate(totals):
            if total:
                hit, out = matched[area][:, best_first], ignored[area][:, best_first]
                precision[area, :, :, category], recall[area, :, category] = _curve(hit & ~out, ~hit & ~out, total)
    return precision, recall


def _match_category(
    found: DetectionColumns, truth: _Truth, category: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match one category's detections, sorted by image then score, to its objects, image by image.

    Returns matched and ignored (areas, thresholds, N) bool and the number of objects that count, (areas,).
    """
    from pycocotools import mask  # of the extra `train`: a trained model works without it

    low, high = (np.array(limits)[:, None] for limits in zip(*AREAS.values(), strict=True))
    matched = np.zeros((len(AREAS), len(IOU_THRESHOLDS), len(found)), dtype=bool)
    on_ignored = np.zeros_like(matched)
    totals = np.zeros(len(AREAS), dtype=np.int64)
    for image, (boxes, areas) in truth.objects[category].items():
        outside = (areas < low) | (areas > high)  # (areas, G)
        totals += (~outside).sum(axis=1)
        start, end = np.searchsorted(found.image, (image, image + 1))
        if start < end:
            overlaps = mask.iou(found.boxes[start:end], boxes, np.zeros(len(boxes), dtype=np.uint8))
            matched[..., start:end], on_ignored[..., start:end] = _match(np.asarray(overlaps), outside)
    size = found.boxes[:, 2] * found.boxes[:, 3]
    unsure = np.isin(found.image, np.fromiter(truth.not_exhaustive[category], dtype=np.int64))
    excused = (size < low) | (size > high) | unsure  # (areas, N), where unmatched
    return matched, on_ignored | (~matched & excused[:, None]), totals


def _match(overlaps: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy matching on one image, for all areas and thresholds at once.

    overlaps: (D,G) IoU, detections best first. outside: (areas,G) objects that do not count. Each detection takes the
    free object it overlaps most, at least at the threshold; one that does not count only if none that does is left;
    of equal overlaps the last. Returns matched, and matched to an object that does not count: (areas, thresholds, D).
    """
    areas, (detections, objects) = len(outside), overlaps.shape
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[None, :, None]
    free = np.ones((areas, len(IOU_THRESHOLDS), objects), dtype=bool)
    matched = np.zeros((areas, len(IOU_THRESHOLDS), detections), dtype=bool)
    on_outside = np.zeros_like(matched)
    for d, overlap in enumerate(overlaps):
        fits = free & (overlap >= thresholds)
        if not fits.any():
            continue
        counting = fits & ~outside[:, None]
        candidates = np.where(counting.any(axis=-1, keepdims=True), counting, fits)
        rank = np.where(candidates, overlap, -1.0)
        best = objects - 1 - np.argmax(rank[..., ::-1], axis=-1)
        taken = (np.arange(objects) == best[..., None]) & fits
        free &= ~taken
        matched[..., d] = taken.any(axis=-1)
        on_outside[..., d] = (taken & outside[:, None]).any(axis=-1)
    return matched, on_outside


def _curve(hits: np.ndarray, misses: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated precision (thresholds, recall levels) and final recall (thresholds,) of detections, best first.

    hits, misses: (thresholds, N) bool, neither for those that do not count. total: objects to be found.
    """
    precision = np.zeros((len(hits), len(RECALL_THRESHOLDS)))
    true, false = np.cumsum(hits, axis=1, dtype=np.float64), np.cumsum(misses, axis=1, dtype=np.float64)
    recall = true / total
    purity = true / (false + true + np.spacing(1))
    purity = np.maximum.accumulate(purity[:, ::-1], axis=1)[:, ::-1]
    for threshold in range(len(hits)):
        index = np.searchsorted(recall[threshold], RECALL_THRESHOLDS, side="left")
        reached = index < hits.shape[1]
        precision[threshold, reached] = purity[threshold, index[reached]]
    return precision, recall[:, -1] if hits.shape[1] else np.zeros(len(hits))


def _summary(precision: np.ndarray, recall: np.ndarray, rarity: np.ndarray) -> dict[str, float]:
    def mean(values: np.ndarray) -> float:
        present = values[values > -1]
        return float(present.mean()) if len(present) else -1.0

    thresholds = {"50": 0, "75": 5}
    summary = {"AP": mean(precision[0])}
    summary |= {f"AP{name}": mean(precision[0, index]) for name, index in thresholds.items()}
    summary |= {f"AP{name}": mean(precision[i]) for i, name in enumerate(AREAS) if name}
    summary |= {f"AP{name}": mean(precision[0][..., rarity == name]) for name in FREQUENCIES}
    return summary | {f"AR{name}": mean(recall[i]) for i, name in enumerate(AREAS)}
