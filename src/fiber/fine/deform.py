"""Modulated deformable 3x3 convolution (Zhu et al., CVPR 2019), one function with two forms, like attention.

Shape letters: B images, C and D channels in and out, (H,W) input map, (h,w) output map.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 9


def deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    """x (B,C,H,W), offset (B,18,h,w) as (dy, dx) per tap in pixels of x, mask (B,9,h,w), weight (D,C,3,3), bias (D,)
    -> (B,D,h,w) float32, padding 1; what lies outside the map is 0.

    Always float32: torchvision's operator has no bf16 kernel, and offsets in bf16 would be off by pixels. CUDA runs
    that operator; on CPU its backward is a scalar loop, and sampling written out is 3 to 9 times faster (2 to 4 times
    with the forward pass). The two differ only in which one-sided derivative they take at whole-pixel offsets.
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
    """`deform_conv` as bilinear sampling of every tap and one matrix product; all tensors float32."""
    (height, width), (rows, columns) = x.shape[-2:], offset.shape[-2:]
    tap = torch.arange(TAPS, device=x.device)[:, None, None]
    row = stride * torch.arange(rows, device=x.device)[:, None] - 1 + tap // 3  # (9,h,1)
    column = stride * torch.arange(columns, device=x.device) - 1 + tap % 3  # (9,1,w)
    # grid_sample wants the position of pixel i as (2i + 1) / side - 1.
    grid = torch.stack(
        [(2 * (offset[:, 1::2] + column) + 1) / width - 1, (2 * (offset[:, 0::2] + row) + 1) / height - 1], -1
    )
    sampled = F.grid_sample(x, grid.flatten(1, 2), mode="bilinear", padding_mode="zeros", align_corners=False)
    # In place and with the bias inside the product: these maps are nine times the input, each pass over them costs.
    taps = sampled.view(x.shape[0], x.shape[1], TAPS, -1).mul_(mask.flatten(2)[:, None]).flatten(1, 2)
    kernel = weight.flatten(1).expand(x.shape[0], -1, -1)
    return torch.baddbmm(bias[:, None], kernel, taps).view(x.shape[0], -1, rows, columns)
