"""Windows of a feature map: cutting it, relative positions inside a window, and the mask of shifted windows
(Swin Transformer, Liu et al., ICCV 2021, §3.2).

Shape letters: B batch, (H, W) map in tokens, C channels, (wh, ww) sides of a window, w² = wh*ww, n windows of a map.
"""

from functools import lru_cache

import torch
from torch import Tensor

REGION_MASK = -100.0  # additive value between tokens of different shift regions

Grid = tuple[int, int]  # rows, columns


def partition(x: Tensor, window: Grid) -> Tensor:
    """(B,H,W,C) -> (B*n,w²,C), windows of an image row by row. H and W are multiples of the window."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def unpartition(x: Tensor, window: Grid, size: Grid) -> Tensor:
    """Inverse of `partition`: (B*n,w²,C) -> (B,H,W,C), `size` (H, W)."""
    x = x.unflatten(1, window).unflatten(0, (-1, size[0] // window[0], size[1] // window[1]))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is cached must serve a later training pass too
def relative_index(window: Grid, side: int, device: torch.device) -> Tensor:
    """Rows of the (2*side-1)² bias table for every (query, key) of a window, flattened (w²*w²,) int64."""
    rows, cols = torch.meshgrid(torch.arange(window[0]), torch.arange(window[1]), indexing="ij")
    rows, cols = rows.flatten(), cols.flatten()
    d_row, d_col = rows[:, None] - rows[None], cols[:, None] - cols[None]
    return ((d_row + side - 1) * (2 * side - 1) + d_col + side - 1).flatten().to(device)


@lru_cache(maxsize=16)  # the stages of the current size; built again from `regions` for another
@torch.inference_mode(False)
def region_mask(size: Grid, window: Grid, shift: Grid, device: torch.device) -> Tensor | None:
    """Additive mask (n,w²,w²) float32, 0 or `REGION_MASK`, that keeps tokens apart which only the cyclic shift has
    brought together in a map of `size` (H, W); None if unshifted."""
    if not any(shift):
        return None
    region = regions(size, window, shift, device)
    return (region[:, None] != region[:, :, None]) * REGION_MASK


@lru_cache(maxsize=1024)  # a byte per token: images of many sizes come and go in stage 2
@torch.inference_mode(False)
def regions(size: Grid, window: Grid, shift: Grid, device: torch.device) -> Tensor:
    """Number of the region that each token of each window comes from, (n,w²) uint8 in 0..8."""
    region = torch.zeros(1, *size, 1, device=device)
    for axis, (w, s) in enumerate(zip(window, shift, strict=True), start=1):
        edges = torch.zeros(size[axis - 1], device=device)
        if s:
            edges[-w:-s], edges[-s:] = 1, 2
        region += edges.view(-1, *[1] * (3 - axis)) * 3 ** (2 - axis)
    return partition(region, window).squeeze(-1).to(torch.uint8)
