"""Boxes of the fine stage: anchors, the box coder, IoU and GIoU, clipping.

Boxes are (x0, y0, x1, y1) in absolute pixels, float. Two conventions meet here, as in the release:
the coder, ATSS and NMS read the corners as inclusive pixels (width = x1 - x0 + 1, "+1"), the GIoU loss and every
metric read them as edges (width = x1 - x0). Each function says which one it uses.

Shape letters: N boxes, M other boxes, A anchors, (H,W) feature map.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SHIFT_WEIGHT, SIDE_WEIGHT = 10.0, 5.0  # of the deltas dx and dy, of dw and dh
MAX_LOG_RATIO = math.log(1000 / 16)  # of a decoded side to its anchor's side
EPS = 1e-7


def make_anchors(
    grids: Sequence[tuple[int, int]],
    sizes: Sequence[float],
    strides: Sequence[int],
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """One square anchor per cell: per level (H*W, 4) float32, row by row.

    The centre of cell (row, col) is (stride - 1) / 2 + stride * (col, row), the corners lie (size - 1) / 2 away
    (size 64 on stride 8: -28 .. 35). Anchors over padding or across the border are kept.
    """
    levels = []
    for (height, width), size, stride in zip(grids, sizes, strides, strict=True):
        y = (stride - 1) / 2 + stride * torch.arange(height, dtype=torch.float32, device=device)
        x = (stride - 1) / 2 + stride * torch.arange(width, dtype=torch.float32, device=device)
        y, x = torch.meshgrid(y, x, indexing="ij")
        centre, half = torch.stack([x, y], -1).view(-1, 2), (size - 1) / 2
        levels.append(torch.cat([centre - half, centre + half], 1))
    return levels


def centres(boxes: Tensor) -> Tensor:
    """(N,4) -> (N,2) mid-points (x, y); the one centre that the coder, ATSS and centerness share."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Deltas (N,4) that `decode` turns back into boxes (N,4) from anchors (N,4). Sides have +1, centres not."""
    anchor_side, side = (b[..., 2:] - b[..., :2] + 1 for b in (anchors, boxes))
    shift = (centres(boxes) - centres(anchors)) / anchor_side
    return torch.cat([shift * SHIFT_WEIGHT, torch.log(side / anchor_side) * SIDE_WEIGHT], -1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (...,4) float32 from deltas and anchors (...,4); log side ratios are capped at log(1000/16)."""
    anchors, deltas = anchors.float(), deltas.float()
    anchor_side = anchors[..., 2:] - anchors[..., :2] + 1
    centre = deltas[..., :2] / SHIFT_WEIGHT * anchor_side + centres(anchors)
    half = ((deltas[..., 2:] / SIDE_WEIGHT).clamp(max=MAX_LOG_RATIO).exp() * anchor_side - 1) / 2
    return torch.cat([centre - half, centre + half], -1)


def pixel_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU (...) of boxes and others (...,4) that broadcast, inclusive pixels (+1)."""
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    overlap = (high - low + 1).clamp(min=0).prod(-1)
    return overlap / (pixel_area(boxes) + pixel_area(others) - overlap)


def pixel_area(boxes: Tensor) -> Tensor:
    """(...,4) -> (...) areas in inclusive pixels (+1)."""
    return (boxes[..., 2:] - boxes[..., :2] + 1).prod(-1)


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU (N,) of aligned pairs in [-1, 1]; edges (no +1) for areas, overlap and enclosing box
    (Rezatofighi et al., CVPR 2019). Boxes without area give finite values."""
    overlap = (torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])).clamp(min=0)
    enclosing = torch.maximum(boxes[:, 2:], others[:, 2:]) - torch.minimum(boxes[:, :2], others[:, :2])
    area, other_area = ((b[:, 2:] - b[:, :2]).clamp(min=0).prod(-1) for b in (boxes, others))
    overlap, enclosing = overlap.prod(-1), enclosing.prod(-1) + EPS
    union = area + other_area - overlap + EPS
    return overlap / union - (enclosing - union) / enclosing


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (...,4) clipped to x in [0, w-1], y in [0, h-1] of their images of `sizes` (...,2), (h, w)."""
    height, width = (side[..., None] for side in sizes.unbind(-1))
    x, y = boxes[..., 0::2].clamp(min=0).clamp(max=width - 1), boxes[..., 1::2].clamp(min=0).clamp(max=height - 1)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)
