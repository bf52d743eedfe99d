"""Modulated deformable 3x3 convolution (Zhu et al., CVPR 2019), one function with two forms, like attention.

Shape letters: B images, C and D channels in and out, (H,W) input map, (h,w) output map.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.processor import weighted_rows

TAPS = 9


def deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    """x (B,C,H,W), offset (B,18,h,w) as (dy, dx) per tap in pixels of x, mask (B,9,h,w), weight (D,C,3,3), bias (D,)
    -> (B,D,h,w) float32, padding 1; what lies outside the map is 0.

    Always float32: torchvision's operator has no bf16 kernel, and offsets in bf16 would be off by pixels. CUDA runs
    that operator; on CPU what is written out here is 3 to 4 times faster, with the backward pass 7 to 10 times.
    """
    x, offset, mask, weight, bias = (t.float() for t in (x, offset, mask, weight, bias))
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):  # costs are counted on meta
        return (card_deform_conv if x.is_cuda else sampled_deform_conv)(x, offset, mask, weight, bias, stride)


def card_deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """`deform_conv` through torchvision's operator; all tensors float32."""
    from torchvision.ops import deform_conv2d  # brings torch's compiler with it: a second of processor time

    return deform_conv2d(x, offset, weight, bias, stride=stride, padding=1, mask=mask)


def sampled_deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """`deform_conv` as the weighted sum of four cells for every tap, and one matrix product; all tensors float32."""
    (batch, channels, height, width), (rows, columns) = x.shape, offset.shape[-2:]
    tap, device = torch.arange(TAPS, device=x.device), x.device
    # Positions in the map with two cells of zeros around it, (B,h,w,9). Those beyond are moved to the outer one.
    steps = offset.view(batch, TAPS, 2, rows, columns).permute(2, 0, 3, 4, 1)
    row = (steps[0] + (stride * torch.arange(rows, device=device)[:, None, None] + 1 + tap // 3)).clamp(0, height + 2)
    column = (steps[1] + (stride * torch.arange(columns, device=device)[:, None] + 1 + tap % 3)).clamp(0, width + 2)
    top, left = (at.detach().floor().nan_to_num() for at in (row, column))  # those of a diverged model are no numbers
    right, full = column - left, mask.permute(0, 2, 3, 1)
    lower = (row - top) * full
    upper = full - lower
    shares = torch.stack([upper - upper * right, upper * right, lower - lower * right, lower * right], -1)
    first = torch.arange(batch, dtype=torch.int32, device=device)[:, None, None, None] * (height + 4)
    corner = (first + top.int()) * (width + 4) + left.int()
    corners = corner[..., None] + torch.tensor([0, 1, width + 4, width + 5], dtype=torch.int32, device=device)
    cells = F.pad(x.permute(0, 2, 3, 1), (0, 0, 2, 2, 2, 2)).reshape(-1, channels)
    taps = weighted_rows(cells, corners.reshape(-1, 4), shares.reshape(-1, 4)).view(-1, TAPS * channels)
    found = torch.addmm(bias, taps, weight.permute(2, 3, 1, 0).reshape(TAPS * channels, -1))
    return found.view(batch, rows, columns, -1).permute(0, 3, 1, 2).contiguous()
