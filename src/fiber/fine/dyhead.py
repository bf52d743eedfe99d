"""Dynamic head (Dai et al., CVPR 2021) with a token alignment output.

Shape letters: B images, C channels, (H,W) of a level, L text length, T text width.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.fine.deform import TAPS, deform_conv
from fiber.recompute import Checkpointing, recomputed

LOGIT_LIMIT = 50000.0
PRIOR = 0.01  # probability that a token matches, before any training


def zero_bias(conv: nn.Conv2d) -> None:
    """Set the bias of a convolution to 0, where it has one."""
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class HeadOutput(NamedTuple):
    """Predictions of every level, finest first: deltas (B,H*W,4), centerness logits (B,H*W) and token logits
    (B,H*W,L), cells row by row. A tuple, because ZeRO-3 brings the head's own parameters back for the backward pass
    only if it finds the tensors in what the head returns."""

    deltas: list[Tensor]
    centerness: list[Tensor]
    tokens: list[Tensor]


class DynamicHead(nn.Module):
    """Tower of dynamic blocks shared by all levels, then box, centerness and token outputs.

    in_channels: of the pyramid; `log_scale`: initial logarithm of the temperature that divides the token logits
    (the release starts at 0; from scratch a smaller value such as -2.5 learns the words sooner).
    """

    def __init__(
        self,
        text_width: int,
        *,
        levels: int = 5,
        in_channels: int = 256,
        channels: int = 256,
        blocks: int = 6,
        groups: int = 16,
        log_scale: float = 0.0,
        checkpointing: Checkpointing = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.blocks = nn.ModuleList(
            DynamicBlock(channels if i else in_channels, channels, groups) for i in range(blocks)
        )
        self.box = nn.Conv2d(channels, 4, 1)
        self.centerness = nn.Conv2d(channels, 1, 1)
        self.box_scales = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in range(levels))
        self.project_text = nn.Linear(text_width, channels)
        self.log_scale = nn.Parameter(torch.full((1,), log_scale))
        self.token_bias = nn.Parameter(torch.zeros(text_width))
        self.bias = nn.Parameter(torch.full((1,), -math.log((1 - PRIOR) / PRIOR)))
        for conv in (self.box, self.centerness):
            nn.init.normal_(conv.weight, std=0.01)
            zero_bias(conv)

    def forward(self, levels: Sequence[Tensor], embedded: Tensor) -> HeadOutput:
        """Pyramid levels (B,C,H,W), finest first, and text tokens (B,L,T) that are 0 on padding."""
        levels = list(levels)
        for block in self.blocks:
            if self.checkpointing and self.training:
                levels = recomputed(self.checkpointing, block, levels)
            else:
                levels = block(levels)
        deltas = [flatten(self.box(x)) * scale for x, scale in zip(levels, self.box_scales, strict=True)]
        central = [flatten(self.centerness(x)).squeeze(-1) for x in levels]
        return HeadOutput(deltas, central, self.align([flatten(x) for x in levels], embedded))

    def align(self, cells: Sequence[Tensor], embedded: Tensor) -> list[Tensor]:
        """Token logits (B,H*W,L) of each level's cells (B,H*W,C): f·W(e/2)/exp(log_scale) + e·b + b0 with e the
        L2-normalised token. The projection's bias is divided by the temperature too."""
        token = F.normalize(embedded.float(), dim=-1).to(embedded.dtype)
        text = self.project_text(token / 2) / self.log_scale.exp()
        bias = token @ self.token_bias + self.bias
        return [(x @ text.transpose(1, 2) + bias[:, None]).clamp(-LOGIT_LIMIT, LOGIT_LIMIT) for x in cells]


class DynamicBlock(nn.Module):
    """One round of scale, spatial and task attention over all levels.

    Each level gathers up to three branches: itself, the finer level (stride 2) and the coarser level (upsampled),
    each through its own modulated deformable 3x3 convolution and GroupNorm, steered by offsets and masks that one
    convolution predicts from the *current* level. The output is the mean of the branches, each weighted by a hard
    sigmoid of its own global average, through a dynamic ReLU.
    """

    def __init__(self, in_channels: int, channels: int, groups: int = 16) -> None:
        super().__init__()
        self.same = DeformableBranch(in_channels, channels, groups)
        self.finer = DeformableBranch(in_channels, channels, groups, stride=2)
        self.coarser = DeformableBranch(in_channels, channels, groups)
        self.offset = nn.Conv2d(in_channels, 3 * TAPS, 3, padding=1)
        self.attention = nn.Conv2d(channels, 1, 1)
        self.relu = DynamicReLU(channels)
        nn.init.zeros_(self.offset.weight)  # an untrained block samples the regular grid
        zero_bias(self.offset)
        nn.init.normal_(self.attention.weight, std=0.01)
        zero_bias(self.attention)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels (B,C,H,W), finest first -> the same grids with `channels` channels."""
        return [self._gather(levels, index) for index in range(len(levels))]

    def _gather(self, levels: list[Tensor], index: int) -> Tensor:
        x = levels[index]
        steer = self.offset(x)
        offset, mask = steer[:, : 2 * TAPS], steer[:, 2 * TAPS :].sigmoid()
        branches = [self.same(x, offset, mask)]
        if index > 0:
            branches.append(self.finer(levels[index - 1], offset, mask))
        if index + 1 < len(levels):
            coarse = levels[index + 1]
            # REF quirk, kept because the released weights were trained with it: the coarser level has fewer cells
            # than the offsets' level, and the release's CUDA kernel reads the larger map as a flat array, so the
            # coarse cells take the *first* 18*h*w numbers of each image's offsets (9*h*w of its masks), whatever
            # channel and position those were predicted for.
            grid = (coarse.shape[-2], coarse.shape[-1])
            branch = self.coarser(coarse, flat_prefix(offset, grid), flat_prefix(mask, grid))
            branches.append(F.interpolate(branch, size=x.shape[-2:], mode="bilinear", align_corners=True))
        gathered = sum(b * hard_sigmoid(F.relu(self.attention(b.mean((2, 3), keepdim=True)))) for b in branches)
        return self.relu(gathered / len(branches))


class DeformableBranch(nn.Module):
    """Modulated deformable 3x3 convolution (Zhu et al., CVPR 2019) and its GroupNorm."""

    def __init__(self, in_channels: int, channels: int, groups: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, in_channels, 3, 3).normal_(std=0.01))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """x (B,C,H,W), offset (B,18,h,w) as (dy, dx) per tap and mask (B,9,h,w) on the output grid -> (B,C',h,w)."""
        return self.norm(deform_conv(x, offset, mask, self.weight, self.bias, self.stride).to(x.dtype))


class DynamicReLU(nn.Module):
    """max(x*(2(a1-1/2)+1) + b1-1/2, x*2(a2-1/2) + b2-1/2) with per-channel a1, b1, a2, b2 in [0, 1] from the global
    average (Chen et al., ECCV 2020)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.expand = nn.Linear(channels // reduction, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W)."""
        gates = hard_sigmoid(self.expand(F.relu(self.squeeze(x.mean((2, 3))))))
        a1, b1, a2, b2 = (g[:, :, None, None] - 0.5 for g in gates.chunk(4, dim=1))
        return torch.maximum(x * (2 * a1 + 1) + b1, x * (2 * a2) + b2)


def flat_prefix(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B,K,H,W) -> (B,K,h,w): the first K*h*w numbers of each image's flattened map, reshaped."""
    channels, (height, width) = x.shape[1], grid
    return x.flatten(1)[:, : channels * height * width].unflatten(1, (channels, height, width))


def hard_sigmoid(x: Tensor) -> Tensor:
    """relu6(x + 3) / 6."""
    return F.relu6(x + 3) / 6


def flatten(x: Tensor) -> Tensor:
    """(B,K,H,W) -> (B,H*W,K)."""
    return x.flatten(2).transpose(1, 2)
