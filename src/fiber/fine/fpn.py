"""Feature pyramid on the fused backbone (Lin et al., CVPR 2017): P3-P7 from the stages of strides 8, 16, 32."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.backbone.stack import Stack


class FeaturePyramid(nn.Module):
    """1x1 laterals, nearest top-down sums, 3x3 outputs, then `extra` levels by stride-2 3x3 convolutions (the first
    from the coarsest output, each next one from the ReLU of the one before).

    widths: channels of the input maps, finest first. DropBlock runs in training before the output convolutions of
    all but the coarsest map.
    """

    def __init__(self, widths: Sequence[int], channels: int = 256, extra: int = 2, drop_block: float = 0.3) -> None:
        super().__init__()
        self.laterals: Stack[nn.Conv2d] = Stack(nn.Conv2d(width, channels, 1) for width in widths)
        self.outputs: Stack[nn.Conv2d] = Stack(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)
        self.extra: Stack[nn.Conv2d] = Stack(nn.Conv2d(channels, channels, 3, 2, padding=1) for _ in range(extra))
        self.drop_block = DropBlock(drop_block)
        for conv in (*self.laterals, *self.outputs, *self.extra):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B,C_s,H_s,W_s), finest first -> len(maps) + extra levels (B,channels,H,W), finest first."""
        merged = self.laterals[-1](maps[-1])
        levels = [self.outputs[-1](merged)]
        for x, lateral, output in reversed(list(zip(maps, self.laterals, self.outputs, strict=True))[:-1]):
            merged = lateral(x) + F.interpolate(merged, size=x.shape[-2:], mode="nearest")
            levels.insert(0, output(self.drop_block(merged)))
        for index, conv in enumerate(self.extra):
            levels.append(conv(F.relu(levels[-1]) if index else levels[-1]))
        return levels


class DropBlock(nn.Module):
    """Zero whole squares of the map, all channels alike, and rescale to the same expected sum (Ghiasi et al.,
    NeurIPS 2018). Square centres are drawn at the rate probability / size²; identity in evaluation."""

    def __init__(self, probability: float, size: int = 3) -> None:
        super().__init__()
        self.probability, self.size = probability, size

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W)."""
        if not self.training or not self.probability:
            return x
        centre = torch.rand(len(x), 1, *x.shape[-2:], device=x.device) < self.probability / self.size**2
        keep = 1 - F.max_pool2d(centre.float(), self.size, stride=1, padding=self.size // 2)
        return x * (keep / keep.mean().clamp(min=1e-6)).to(x.dtype)
