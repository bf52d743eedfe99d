"""Modulated deformable 3x3 convolution (Zhu et al., CVPR 2019), one function with two forms, like attention.

Shape letters: B images, C and D channels in and out, (H,W) input map, (h,w) output map.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 9


def deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    """x (B,C,H,W), offset (B,18,h,w) as (dy, dx) per tap in pixels of x, mask (B,9,h,w), weight (D,C,3,3), bias (D,)
    -> (B,D,h,w) float32, padding 1; what lies outside the map is 0.

    Always float32: torchvision's operator has no bf16 kernel, and offsets in bf16 would be off by pixels. CUDA runs
    that operator; on CPU what is written out here is 3 to 4 times faster, with the backward pass 7 to 10 times.
    """
    x, offset, mask, weight, bias = (t.float() for t in (x, offset, mask, weight, bias))
    # Tensors without contents, on which costs are counted, know no autocast.
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        form = operator_deform_conv if x.is_cuda else sampled_deform_conv
        return form(x, offset, mask, weight, bias, stride)


def operator_deform_conv(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """`deform_conv` through torchvision's operator; all tensors float32."""
    from torchvision.ops import deform_conv2d  # brings torch's compiler with it: a second of processor time

    return deform_conv2d(x, offset, weight, bias, stride=stride, padding=1, mask=mask)


def sampled_deform_conv(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """`deform_conv` as the weighted sum of four cells for every tap, and one matrix product; all tensors float32."""
    (batch, channels, height, width), (rows, columns) = x.shape, offset.shape[-2:]
    # Positions in the map with two cells of zeros around it, (B,h,w,9). Those beyond are moved to the outer one.
    down, across = 1 + torch.arange(TAPS, device=x.device) // 3, 1 + torch.arange(TAPS, device=x.device) % 3
    steps = offset.view(batch, TAPS, 2, rows, columns).permute(2, 0, 3, 4, 1)
    row = steps[0] + (stride * torch.arange(rows, device=x.device)[:, None, None] + down)
    column = steps[1] + (stride * torch.arange(columns, device=x.device)[:, None] + across)
    row, column = row.clamp(0, height + 2), column.clamp(0, width + 2)
    # Those of a model that has diverged are no numbers; its outputs then are none either.
    top, left = (at.detach().floor().nan_to_num() for at in (row, column))
    right, full = column - left, mask.permute(0, 2, 3, 1)
    lower = (row - top) * full
    upper = full - lower
    shares = torch.stack([upper - upper * right, upper * right, lower - lower * right, lower * right], -1)
    image = torch.arange(batch, device=x.device)[:, None, None, None] * (height + 4)
    corner = ((image + top) * (width + 4) + left).int()
    corners = corner[..., None] + torch.tensor([0, 1, width + 4, width + 5], dtype=torch.int32, device=x.device)
    cells = F.pad(x.permute(0, 2, 3, 1), (0, 0, 2, 2, 2, 2)).reshape(-1, channels)
    taps = weighted_rows(cells, corners.reshape(-1, 4), shares.reshape(-1, 4)).view(-1, TAPS * channels)
    found = torch.addmm(bias, taps, weight.permute(2, 3, 1, 0).reshape(TAPS * channels, -1))
    return found.view(batch, rows, columns, -1).permute(0, 3, 1, 2).contiguous()


def weighted_rows(rows: Tensor, index: Tensor, shares: Tensor) -> Tensor:
    """rows (N,C), index (P,K) int32, shares (P,K) -> (P,C), the sum over k of rows[index] x shares."""
    sums = F.embedding_bag(index, rows.detach(), mode="sum", per_sample_weights=shares)
    return _IntoRows.apply(sums, rows, index, shares.detach()) if rows.requires_grad else sums


class _IntoRows(torch.autograd.Function):
    """The sums as they are, with their gradient for the rows: each row sums what it was used for, as the forward pass
    does it. embedding_bag's own backward adds one row after the other, in three times the time."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, rows: Tensor, index: Tensor, shares: Tensor) -> Tensor:
        ctx.save_for_backward(index, shares)
        ctx.rows = len(rows)
        return sums.view_as(sums)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        index, shares = ctx.saved_tensors
        used, place = index.flatten().sort()
        starts = torch.searchsorted(used, torch.arange(ctx.rows, dtype=used.dtype, device=used.device))
        into = F.embedding_bag(
            place // index.shape[1], grad, starts, mode="sum", per_sample_weights=shares.flatten()[place]
        )
        return grad, into, None, None
