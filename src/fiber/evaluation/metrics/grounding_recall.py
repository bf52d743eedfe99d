"""Phrase localisation (Flickr30k Entities) and referring expressions (RefCOCO/+/g).

Conventions: boxes are [x0, y0, x1, y1] in pixels, their corners edges (no "+1"); a hit is IoU >= 0.5.

Phrases: the unit is one phrase with at least one box, in one caption. ANY asks for an overlap with any box of the
phrase, MERGED first replaces them by the box that encloses them all. MDETR, GLIP and FIBER report ANY.

Expressions: MDETR and FIBER threshold the *generalised* IoU, which is never larger than IoU, so their published
numbers are a little low; both are returned.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fiber.evaluation.predictions import Row

HIT = 0.5
TOP_K = (1, 5, 10)


@dataclass(frozen=True)
class Phrase:
    """A phrase to be found: which one, its true boxes (G,4) with G >= 1, and its Entities types ("people", ...)."""

    image_id: str | int
    caption: int
    phrase: int
    boxes: np.ndarray
    types: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str | int, int, int]:
        return self.image_id, self.caption, self.phrase


def phrases_of(record: Mapping[str, Any]) -> Iterator[Phrase]:
    """The phrases of a record that have boxes, numbered within their caption (those without box count too)."""
    for caption, entry in enumerate(record.get("captions", ())):
        for phrase, mention in enumerate(entry.get("phrases", ())):
            if mention.get("boxes"):
                boxes = np.array([record["boxes"][i]["box"] for i in mention["boxes"]], dtype=np.float64)
                yield Phrase(record["image_id"], caption, phrase, boxes, tuple(mention.get("types", ())))


def phrase_recall(phrases: Iterable[Phrase], predictions: Iterable[Row], merged: bool = False) -> dict[str, Any]:
    """Recall of predicted boxes over all phrases.

    predictions: rows `{"image_id", "caption", "phrase", "boxes": [[x0, y0, x1, y1], ...]}`, best box first, one row
    for every phrase; no boxes is a miss. merged: the MERGED protocol instead of ANY.
    Returns fractions `r1`, `r5`, `r10`, `upper_bound` (all predicted boxes) and, where types are known, `by_type`:
    the same for each type, a phrase counting under all of its types. ValueError names a phrase without row, a row
    without phrase, or one that comes twice.
    """
    wanted = {phrase.key: phrase for phrase in phrases}
    if not wanted:
        raise ValueError("no phrase with a box: nothing to score")
    total = len(wanted)
    first_hits: dict[str, list[float]] = defaultdict(list)  # type (or "" for all) -> rank of the first hit
    for row in predictions:
        key = (row["image_id"], row["caption"], row["phrase"])
        if key not in wanted:
            raise ValueError(f"phrase {_name(key)} was predicted twice or is not among those to be found")
        phrase = wanted.pop(key)
        truth = enclosing(phrase.boxes)[None] if merged else phrase.boxes
        hits = (iou(_boxes(row["boxes"], key), truth) >= HIT).any(axis=1)
        first = float(np.argmax(hits)) if hits.any() else math.inf
        for name in ("", *phrase.types):
            first_hits[name].append(first)
    if wanted:
        raise ValueError(f"no prediction for {len(wanted)} of {total} phrases, e.g. {_name(next(iter(wanted)))}")
    recalls = {name: _recall(first_hits[name]) for name in sorted(first_hits)}
    everything = recalls.pop("")
    return {**everything, "by_type": recalls} if recalls else everything


def class_agnostic_recall(phrases: Iterable[Phrase], merged: bool = False) -> dict[str, float]:
    """Expected recall of a perfect localiser that ignores the words: the baseline a grounding score has to beat.

    It knows the true boxes of all objects its caption mentions and offers them for every phrase in random order. With
    h of the caption's n distinct boxes hitting a phrase, Recall@k is 1 - C(n - h, k) / C(n, k).
    """
    captions: dict[tuple, list[Phrase]] = defaultdict(list)
    for phrase in phrases:
        captions[phrase.image_id, phrase.caption].append(phrase)
    if not captions:
        raise ValueError("no phrase with a box: nothing to score")
    found: dict[int, list[float]] = {k: [] for k in TOP_K}
    for mentioned in captions.values():
        objects = np.unique(np.concatenate([phrase.boxes for phrase in mentioned]), axis=0)
        for phrase in mentioned:
            truth = enclosing(phrase.boxes)[None] if merged else phrase.boxes
            misses = len(objects) - int((iou(objects, truth) >= HIT).any(axis=1).sum())
            for k in TOP_K:
                tries = min(k, len(objects))
                found[k].append(1 - math.comb(misses, tries) / math.comb(len(objects), tries))
    return {f"r{k}": float(np.mean(values)) for k, values in found.items()}


def referring_precision(targets: Mapping[str | int, ArrayLike], predictions: Iterable[Row]) -> dict[str, float]:
    """Precision@1, 5 and 10 of referring expressions, over expressions (sentences).

    targets: expression id -> true box (4,). predictions: rows `{"expression_id", "boxes": [[x0, y0, x1, y1], ...]}`,
    best box first, one row for every expression.
    Returns fractions `p1`, `p5`, `p10` for IoU >= 0.5 and `giou_p1`, ... for GIoU >= 0.5, the release's rule.
    ValueError names an expression without row, a row without expression, or one that comes twice.
    """
    wanted = dict(targets)
    if not wanted:
        raise ValueError("no referring expression: nothing to score")
    first_hits: dict[str, list[float]] = {"": [], "giou_": []}
    for row in predictions:
        key = row["expression_id"]
        if key not in wanted:
            raise ValueError(f"expression {key!r} was predicted twice or is not among those to be found")
        truth, boxes = _boxes([wanted.pop(key)], key), _boxes(row["boxes"], key)
        for name, overlap in (("", iou), ("giou_", giou)):
            hits = overlap(boxes, truth)[:, 0] >= HIT
            first_hits[name].append(float(np.argmax(hits)) if hits.any() else math.inf)
    if wanted:
        raise ValueError(
            f"no prediction for {len(wanted)} of {len(targets)} expressions, e.g. {next(iter(wanted))!r}"
        )
    return {
        f"{name}p{k}": float(np.mean([first < k for first in firsts]))
        for name, firsts in first_hits.items()
        for k in TOP_K
    }


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU (N,M) of boxes (N,4) and (M,4), edges; 0 where both are without area."""
    overlap, union, _ = _areas(boxes, others)
    return overlap / np.where(union > 0, union, 1.0)


def giou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Generalised IoU (N,M) in [-1, 1]: IoU less the share of the enclosing box that neither covers."""
    overlap, union, hull = _areas(boxes, others)
    return overlap / np.where(union > 0, union, 1.0) - (hull - union) / np.where(hull > 0, hull, 1.0)


def enclosing(boxes: np.ndarray) -> np.ndarray:
    """(G,4) -> the smallest box (4,) around them all."""
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def _areas(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overlap, union and area of the enclosing box, each (N,M)."""
    a, b = boxes[:, None], others[None]
    overlap = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(min=0).prod(-1)
    hull = (np.maximum(a[..., 2:], b[..., 2:]) - np.minimum(a[..., :2], b[..., :2])).prod(-1)
    area, other_area = ((x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b))
    return overlap, area + other_area - overlap, hull


def _boxes(boxes: Sequence[ArrayLike], key: object) -> np.ndarray:
    array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) if len(boxes) else np.zeros((0, 4))
    if not np.isfinite(array).all() or (array[:, 2:] < array[:, :2]).any():
        raise ValueError(f"{_name(key)}: boxes must be finite [x0, y0, x1, y1] with x0 <= x1 and y0 <= y1")
    return array


def _recall(first_hits: Sequence[float]) -> dict[str, float]:
    recall = {f"r{k}": float(np.mean([first < k for first in first_hits])) for k in TOP_K}
    return recall | {"upper_bound": float(np.mean([first < math.inf for first in first_hits]))}


def _name(key: object) -> str:
    if not isinstance(key, tuple):
        return f"expression {key!r}"
    return "image {!r}, caption {}, phrase {}".format(*key)
