"""Adaptive training sample selection: which anchors learn which box (Zhang et al., CVPR 2020).

Shape letters: A anchors of all levels, N boxes of one image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fiber.fine.boxes import centres, pairwise_iou

CANDIDATES = 9  # nearest anchor centres per level
INSIDE = 0.01  # pixels by which a positive's centre lies inside its box


@torch.no_grad()
def assign(boxes: Tensor, anchors: Sequence[Tensor]) -> Tensor:
    """Index of the box that each anchor learns, -1 = background: (A,) int64.

    boxes (N,4) xyxy px; anchors: per level (A_l,4), concatenated in this order in the result. A box's candidates are
    the 9 nearest anchor centres of every level; those whose IoU (+1) reaches mean + standard deviation (unbiased) of
    all candidates' IoUs, and whose centre lies inside the box by more than 0.01 px, are positive. An anchor wanted by
    several boxes goes to the one of highest IoU. Anchors over padding take part. A box may end with no anchor.
    """
    every = torch.cat(list(anchors))
    if len(boxes) == 0:
        return torch.full((len(every),), -1, device=every.device)
    boxes = boxes.float()
    candidates = _nearest(boxes, anchors)
    iou = pairwise_iou(boxes, every)
    candidate_iou = iou.gather(1, candidates)
    deviation = candidate_iou.std(1, keepdim=True) if candidates.shape[1] > 1 else 0.0
    chosen = candidate_iou >= candidate_iou.mean(1, keepdim=True) + deviation

    centre = centres(every)[candidates]
    margin = torch.cat([centre - boxes[:, None, :2], boxes[:, None, 2:] - centre], -1).amin(-1)
    chosen &= margin > INSIDE

    wanted = torch.full_like(iou, -1.0)
    wanted.scatter_(1, candidates, torch.where(chosen, candidate_iou, -1.0))
    best, index = wanted.max(0)
    return torch.where(best < 0, -1, index)


def _nearest(boxes: Tensor, anchors: Sequence[Tensor]) -> Tensor:
    """Indices (N, sum of min(9, A_l)) into all anchors of the nearest centres level by level."""
    nearest, start = [], 0
    for level in anchors:
        distance = torch.cdist(centres(boxes), centres(level), compute_mode="donot_use_mm_for_euclid_dist")
        nearest.append(start + distance.topk(min(CANDIDATES, len(level)), largest=False).indices)
        start += len(level)
    return torch.cat(nearest, 1)
