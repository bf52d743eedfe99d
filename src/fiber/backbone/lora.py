"""Low-rank adaptation of the attention projections (Hu et al., ICLR 2022): y = W x + (alpha / rank) U D x, W frozen.

An adapted layer keeps its plain names (`query.weight` next to `query.lora_down`, `query.lora_up`). So initial weights
load before or after the layers are replaced, learning-rate groups go by the same names, and an export merges into a
plain model. The peft library computes the same but renames every weight that it adapts; a test compares the two.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.backbone.fusion import FusionBackbone

PROJECTIONS = ("qkv", "proj", "query", "key", "value", "key_value", "output")
"""Names of the linear maps of attention: of both towers, and of the cross-attention between them."""


class Adaptable(Protocol):
    """A model on the fusion backbone."""

    backbone: FusionBackbone


class LoraLinear(nn.Linear):
    """`base` (which gives up its tensors) with a low-rank addition that is 0 at the start."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias, self.scale = base.weight, base.bias, alpha / rank
        bound, down = base.in_features**-0.5, torch.empty(rank, base.in_features)
        self.lora_down = nn.Parameter(down.uniform_(-bound, bound, generator=generator))
        self.lora_up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_down), self.lora_up)


def add_lora(model: Adaptable, rank: int, alpha: float, seed: int = 0) -> None:
    """Adapt every attention projection of `model.backbone` (a FusionBackbone) in place, on the CPU.

    Towers and cross-attention are frozen but for the adapters, which are drawn from `seed`, the same on all ranks.
    What lies elsewhere (heads, pyramid, the maps of captioning) keeps its setting.
    """
    backbone = model.backbone
    parts: tuple[nn.Module, ...] = (backbone.image, backbone.text)
    for part in (*parts, backbone.fusion.image_to_text, backbone.fusion.text_to_image):
        part.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in list(backbone.modules()):
        for name, child in module.named_children():
            if name in PROJECTIONS and isinstance(child, nn.Linear):
                setattr(module, name, LoraLinear(child, rank, alpha, generator))


def merge_lora(weights: Mapping[str, Tensor], alpha: float, rank: int) -> dict[str, Tensor]:
    """Weights by name with the adapters added into the maps that they adapt, the adapters themselves left out: those
    of a plain model with equal outputs. `alpha` and `rank` are those of `add_lora`. Without adapters nothing changes.
    """
    merged = {name: tensor for name, tensor in weights.items() if not name.endswith((".lora_down", ".lora_up"))}
    for name, up in weights.items():
        if name.endswith(".lora_up"):
            layer = name.removesuffix("lora_up")
            merged[f"{layer}weight"] = weights[f"{layer}weight"] + alpha / rank * up @ weights[f"{layer}lora_down"]
    return merged
