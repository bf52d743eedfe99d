"""Initial weights of a model that starts from nothing (or of the parts that no checkpoint brings)."""

import torch
from torch import nn

from fiber.backbone.image import SwinTower, WindowAttention


def initialise(module: nn.Module, scheme: str, seed: int) -> None:
    """Draw every weight of `module` again: biases 0, norms 1, gates as constructed.

    `scheme` "normal": N(0, 0.02), the published recipe, right at width 768 and on pre-trained towers.
    "fan_in": linear maps N(0, 1/fan_in): a narrow tower that starts from nothing passes almost no signal at 0.02.
    Embeddings are N(0, 0.02) in both (a LayerNorm follows them). Relative-position tables are 0 under "normal" and
    N(0, 0.5) under "fan_in": AdamW moves an entry by the learning rate per step at most, so heads that shall look in
    different directions within minutes must begin with some preference.
    A padded image tower draws the bias of its patch embedding, too, as Swin does: padding is 0, and its tokens would
    stay 0 through every block, where each LayerNorm multiplies the gradient by 1/sqrt(eps).
    """
    if scheme not in ("normal", "fan_in"):
        raise ValueError(f"model.init must be 'normal' or 'fan_in', not {scheme!r}")
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            fan_in = part.weight[0].numel()
            std = fan_in**-0.5 if scheme == "fan_in" else 0.02
            nn.init.trunc_normal_(part.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02, generator=generator)
            if part.padding_idx is not None:
                with torch.no_grad():
                    part.weight[part.padding_idx].zero_()
        elif isinstance(part, nn.LayerNorm | nn.GroupNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, WindowAttention):
            std = 0.5 if scheme == "fan_in" else 0.0
            nn.init.normal_(part.relative_position_bias, std=std, generator=generator)
    for part in module.modules():  # last, so that the other draws are those of a square tower
        if isinstance(part, SwinTower) and part.padded and (bias := part.patch_embed.proj.bias) is not None:
            bound = part.patch_embed.proj.weight[0].numel() ** -0.5
            nn.init.uniform_(bias, -bound, bound, generator=generator)
