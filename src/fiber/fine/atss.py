"""Adaptive training sample selection: which anchors learn which box (Zhang et al., CVPR 2020).

Shape letters: A anchors of all levels, N boxes of B images, K candidates of a box.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fiber.fine.boxes import centres, pixel_iou

CANDIDATES = 9  # nearest anchor centres per level
INSIDE = 0.01  # pixels by which a positive's centre lies inside its box


@torch.no_grad()
def assign(boxes: Tensor, image: Tensor, anchors: Sequence[Tensor], images: int) -> Tensor:
    """Index of the box that each anchor learns in each of `images` images, -1 = background: (B,A) int64.

    boxes (N,4) xyxy px; image (N,) int64, the row that each belongs to; anchors: per level (A_l,4), concatenated in
    this order in the result. A box's candidates are the 9 nearest anchor centres of every level; those whose IoU (+1)
    reaches mean + standard deviation (unbiased) of all candidates' IoUs, and whose centre lies inside the box by more
    than 0.01 px, are positive. An anchor wanted by several boxes goes to the one of highest IoU, the first of equal
    ones. Anchors over padding take part. A box may end with no anchor. Nothing here waits for a card.
    """
    every, boxes = torch.cat(list(anchors)), boxes.float()
    candidates = _nearest(boxes, anchors)
    near = every[candidates]
    iou = pixel_iou(boxes[:, None], near)
    deviation = iou.std(1, keepdim=True) if iou.numel() > len(iou) else 0.0  # no boxes, or one anchor: no spread
    chosen = iou >= iou.mean(1, keepdim=True) + deviation
    centre = centres(near)
    margin = torch.cat([centre - boxes[:, None, :2], boxes[:, None, 2:] - centre], -1).amin(-1)
    chosen &= margin > INSIDE

    wanted, place = torch.where(chosen, iou, -1.0).flatten(), (image[:, None] * len(every) + candidates).flatten()
    best = wanted.new_full((images * len(every),), -1.0).scatter_reduce(0, place, wanted, "amax")
    number = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(chosen).flatten()
    number = number.masked_fill((wanted < 0) | (wanted < best[place]), len(boxes))  # of no use to its anchor
    index = number.new_full(best.shape, len(boxes)).scatter_reduce(0, place, number, "amin")
    return index.masked_fill(index == len(boxes), -1).view(images, -1)


def _nearest(boxes: Tensor, anchors: Sequence[Tensor]) -> Tensor:
    """Indices (N,K), K the sum of min(9, A_l), into all anchors of the nearest centres level by level."""
    nearest, start = [], 0
    for level in anchors:
        distance = torch.cdist(centres(boxes), centres(level), compute_mode="donot_use_mm_for_euclid_dist")
        nearest.append(start + distance.topk(min(CANDIDATES, len(level)), largest=False).indices)
        start += len(level)
    return torch.cat(nearest, 1)
