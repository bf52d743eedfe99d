"""A detector small enough for unit tests."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fiber.backbone.fusion import FusionBackbone
from fiber.backbone.image import SwinTower
from fiber.backbone.text import RobertaTower
from fiber.fine.dyhead import HeadOutput
from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import BoxSelection, Detections, candidates, choose, class_weights

LIMIT = 32


def tiny_detector(query_norm: bool = False, vocab: int = 400, **options: Any) -> FiberDetector:
    """Four image stages, three text layers, two fused pairs with open gates, three levels; no dropout."""
    torch.manual_seed(0)
    image = SwinTower(
        embed_dim=8,
        depths=(1, 1, 2, 1),
        heads=(1, 2, 2, 4),
        window=4,
        drop_path=0.0,
        padded=True,
        stage_norms=True,
    )
    text = RobertaTower(vocab_size=vocab, width=16, layers=3, heads=2, intermediate=32, dropout=0.0)
    backbone = FusionBackbone(image, text, num_fused=2, query_norm=query_norm, last_text_norm=True)
    small = {"channels": 16, "head_channels": 16, "head_blocks": 2, "groups": 4, "drop_block": 0.0}
    levels = {"anchor_sizes": (24, 48, 96), "strides": (8, 16, 32)}
    model = FiberDetector(backbone, **{"text_limit": LIMIT, **small, **levels, **options})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.5)
    return model


def detections(
    output: HeadOutput,
    anchors: Sequence[Tensor],
    class_tokens: Sequence[Tensor],
    sizes: Tensor,
    selection: BoxSelection,
) -> list[Detections]:
    """From the outputs of the head to the detections of each image of a batch."""
    weights = class_weights(class_tokens)
    return choose(candidates(output, anchors, weights, selection), sizes, weights.shape[1], selection)
