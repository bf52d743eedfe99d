"""Multi-scale test: an image is asked at several sizes, as it is and mirrored, and what is found is merged by voting.

The numbers are the release's defaults (microsoft/FIBER, `maskrcnn_benchmark/config/defaults.py`, TEST.*; its merging
is `engine/bbox_aug.py`). Each size answers only for boxes of the areas that it shows well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fiber.backbone.states import TextState
from fiber.data.prompts import Prompt
from fiber.data.samples.images import fitted, resize
from fiber.fine.boxes import pixel_area, pixel_iou
from fiber.fine.inference import Query, run_queries
from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import BoxSelection, Detections, suppress


@dataclass(frozen=True)
class Scale:
    """A short side (px) and the boxes that it answers for: larger than `low` squared and smaller than `high` squared,
    in pixels of the image at this size, corners inclusive (+1)."""

    short: int
    low: float = 0
    high: float = 10_000


RELEASE_SCALES = (
    Scale(400, low=96),
    Scale(500, low=96),
    Scale(600, low=64),
    Scale(640, low=64),
    Scale(700, low=64),
    Scale(900),
    Scale(1000),
    Scale(1100, high=256),
    Scale(1200, high=256),
    Scale(1300, high=192),
    Scale(1400, high=192),
    Scale(1800, high=96),
)


@dataclass(frozen=True)
class MultiScale:
    """The sizes, the longest side of any of them (px), whether each is also asked mirrored, and how detections of one
    class are merged: by voting (`vote_boxes`), or by suppression as everywhere else; IoU from or above `overlap`."""

    scales: tuple[Scale, ...] = RELEASE_SCALES
    longest: int = 2500
    flip: bool = True
    vote: bool = True
    overlap: float = 0.6


def detect_multi_scale(
    model: FiberDetector,
    image: Tensor,
    prompts: Sequence[Prompt],
    selection: BoxSelection,
    how: MultiScale,
    *,
    keep: int | None = None,
    pairs: int = 8,
    text: TextState | None = None,
) -> Detections:
    """Detections of one stored image, uint8 RGB (3,H,W), in its pixels, best first; other arguments as
    `fine.inference.run_queries`. `selection` holds for each size, `keep` for the union. None are found without
    prompts."""
    parts = []
    for pixels, scale, mirrored in views(image, how):
        height, width = pixels.shape[1:]
        (found,) = run_queries(
            model, [Query(pixels, (width, height), prompts)], selection, keep=keep, pairs=pairs, text=text
        )
        parts.append(stored_pixels(in_range(found, scale), (width, height), image, mirrored))
    merged = Detections.cat(parts)
    if len(parts) > 1 or how.vote:
        merged = vote_boxes(merged, how.overlap) if how.vote else suppress(merged, how.overlap)
    return merged.best(len(merged.scores) if keep is None else keep)


def views(image: Tensor, how: MultiScale) -> Iterator[tuple[Tensor, Scale, bool]]:
    """The image (3,h,w) at each size, with that size, and whether it is mirrored."""
    height, width = image.shape[1:]
    for scale in how.scales:
        pixels = resize(image.permute(1, 2, 0).numpy(), *fitted(width, height, scale.short, how.longest))
        yield pixels, scale, False
        if how.flip:
            yield pixels.flip(2), scale, True


def in_range(found: Detections, scale: Scale) -> Detections:
    """The boxes, in pixels of the image at that size, that the size answers for."""
    area = pixel_area(found.boxes)
    kept = (area > scale.low**2) & (area < scale.high**2)
    return Detections(found.boxes[kept], found.scores[kept], found.labels[kept])


def stored_pixels(found: Detections, size: tuple[int, int], image: Tensor, mirrored: bool) -> Detections:
    """Boxes on a view of `size` (width, height) -> boxes on the stored image (3,H,W). Mirroring sends column x to
    column width - 1 - x, so a box's right edge becomes its left one."""
    boxes = found.boxes
    if mirrored:
        boxes = torch.stack([size[0] - 1 - boxes[:, 2], boxes[:, 1], size[0] - 1 - boxes[:, 0], boxes[:, 3]], 1)
    scale = torch.tensor([image.shape[2] / size[0], image.shape[1] / size[1]] * 2)
    return replace(found, boxes=boxes * scale)


def vote_boxes(found: Detections, overlap: float) -> Detections:
    """Box voting within each class: the best box takes all that overlap it by `overlap` at least (IoU, inclusive
    pixels) and becomes their mean, weighted by their scores; its score stays the best one (Gidaris and Komodakis,
    ICCV 2015, with the release's score). The next best of what is left goes on."""
    boxes, scores, labels = [], [], []
    for label in found.labels.unique().tolist():
        own = found.labels == label
        left = Detections(found.boxes[own], found.scores[own], found.labels[own]).best(int(own.sum()))
        while len(left.scores):
            taken = pixel_iou(left.boxes[:1].double(), left.boxes.double()) >= overlap
            taken[0] = True  # whatever the overlap asked for, so that this ends
            weights = left.scores[taken, None].double()
            boxes.append((left.boxes[taken].double() * weights).sum(0) / weights.sum())
            scores.append(left.scores[0])
            labels.append(left.labels[0])
            left = Detections(left.boxes[~taken], left.scores[~taken], left.labels[~taken])
    if not boxes:
        return found
    voted = Detections(torch.stack(boxes).to(found.boxes.dtype), torch.stack(scores), torch.stack(labels))
    return voted.best(len(voted.scores))
