"""What became of every detection and every object of an image, and the score from which detections are worth showing.

One label per place: of detections that overlap by more than PLACE, whatever their classes, the best one counts. Then,
best first, each detection takes an object that no better one has taken:

* hit: an object of its class at IoU >= HIT;
* confused: an object of another class at IoU >= HIT, of those that no hit took;
* low: an object of its class at IoU >= NEAR, of those that are left;
* crowd: half of it lies on a crowd of its class (COCO: neither right nor wrong);
* false: nothing of these. An object that nothing took is missed.

Boxes are [x0, y0, x1, y1] in pixels. D detections, best first; G objects.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fiber.evaluation.metrics.grounding_recall import HIT, iou

PLACE = 0.6  # IoU above which two detections stand on one place
NEAR = 0.1  # IoU from which a detection of the right class has found an object badly
MISTAKES = ("missed", "confused", "low", "false")


@dataclass(frozen=True)
class ImageObjects:
    """The objects of an image or its detections: boxes (G,4) float64, a class per box, which are crowds."""

    boxes: np.ndarray
    classes: Sequence[int | str]
    crowd: Sequence[bool] = ()


@dataclass(frozen=True)
class Matches:
    """`found` (D) and `true` (G): what became of each, in the words above (a true crowd: "crowd"); `partner` (D): the
    object that a detection took, -1 for none."""

    found: list[str]
    true: list[str]
    partner: list[int]

    @property
    def mistakes(self) -> int:
        """Detections and objects that are not as they should be; a confusion or a low overlap counts once."""
        return sum(state != "hit" and state != "crowd" for state in self.found) + self.true.count("missed")


def one_per_place(boxes: np.ndarray) -> np.ndarray:
    """Rows of boxes (D,4), best first, that no better kept one overlaps by more than PLACE."""
    overlap = iou(boxes, boxes)
    kept: list[int] = []
    for row in range(len(boxes)):
        if not (overlap[row, kept] > PLACE).any():
            kept.append(row)
    return np.array(kept, dtype=np.int64)


def match(found: ImageObjects, truth: ImageObjects) -> Matches:
    """Match the detections of an image, best first and one per place, with its objects."""
    crowd = list(truth.crowd) or [False] * len(truth.classes)
    states, true = ["false"] * len(found.classes), ["crowd" if c else "missed" for c in crowd]
    partner = [-1] * len(states)
    overlap = iou(found.boxes, truth.boxes)
    same = np.array([[a == b for b in truth.classes] for a in found.classes], dtype=bool).reshape(overlap.shape)
    for state, allowed, least in (("hit", same, HIT), ("confused", ~same, HIT), ("low", same, NEAR)):
        for d in range(len(states)):
            free = np.array([s == "missed" for s in true], dtype=bool)
            score = np.where(allowed[d] & free & (overlap[d] >= least), overlap[d], -1.0)
            if states[d] == "false" and len(score) and score.max() >= 0:
                g = int(score.argmax())
                states[d], true[g], partner[d] = state, state, g
    for d, state in enumerate(states):
        if state == "false" and any(c and s and _inside(found.boxes[d], truth.boxes[g]) >= HIT
                                    for g, (c, s) in enumerate(zip(crowd, same[d], strict=True))):  # fmt: skip
            states[d] = "crowd"
    return Matches(states, true, partner)


def best_threshold(images: Iterable[tuple[ImageObjects, np.ndarray, ImageObjects]]) -> tuple[float, float] | None:
    """The score from which detections should be shown, and the F1 that they then have: of all scores that with the
    greatest F1 (at IoU >= HIT, one label per place) over a set; of several the greatest. None for a set without
    objects or without detections.

    images: detections, their scores (D,), objects. Dropping the detections below a score changes nothing of what
    became of the others, so that one pass over the set is enough.
    """
    scores: list[float] = []
    hits: list[bool] = []
    objects = 0
    for found, score, truth in images:
        states = match(found, truth).found
        judged = [state != "crowd" for state in states]
        scores += [float(s) for s, j in zip(score, judged, strict=True) if j]
        hits += [state == "hit" for state, j in zip(states, judged, strict=True) if j]
        objects += len(truth.classes) - sum(truth.crowd)
    if not objects or not scores:
        return None
    order = np.argsort(-np.array(scores), kind="stable")
    ordered = np.array(scores)[order]
    right = np.cumsum(np.array(hits)[order])
    f1 = 2 * right / (np.arange(1, len(order) + 1) + objects)
    f1[:-1][ordered[:-1] == ordered[1:]] = -1.0  # a score keeps all detections that have it
    best = int(f1.argmax())
    return float(ordered[best]), float(f1[best])


def _inside(box: np.ndarray, region: np.ndarray) -> float:
    """Share of a box that lies in a region."""
    overlap = (np.minimum(box[2:], region[2:]) - np.maximum(box[:2], region[:2])).clip(min=0).prod()
    return float(overlap / max((box[2:] - box[:2]).prod(), 1e-12))
