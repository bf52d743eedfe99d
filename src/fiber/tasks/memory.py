"""What training needs of memory, by structure: the numbers that a forward pass keeps for the backward pass.

Counted on weightless tensors ("meta"), so it takes no memory and no time at any size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fiber.backbone.build import build_backbone
from fiber.coarse.model import CoarseModel
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config
from fiber.fine.model import FiberDetector
from fiber.tasks.regions import detector_options

STATE_BYTES = 18
"""Of a trained number: weight, gradient and two moments in fp32, and what the optimizer's step holds on the way."""

PEAK = 1.3
"""Measured peak of the activations over what is kept: results on their way, a block that is recomputed."""


def detector_bytes(config: Stage2Config, vocabulary: int, height: int, width: int) -> tuple[int, int]:
    """(bytes of weights and optimizer, bytes of activations of one image of `height` x `width` px) in training a
    detector in fp32, its captions as long as `max_text`."""
    with torch.device("meta"):
        backbone = build_backbone(config.model, vocabulary, 1, config.max_text, fine=True)
        model = FiberDetector(backbone, **detector_options(config), checkpointing=config.model.checkpointing)
        images, ids = torch.empty(1, 3, height, width), torch.ones(1, config.max_text, dtype=torch.int64)
    sizes = torch.tensor([[height, width]])
    return _state_bytes(model), _kept_bytes(model, lambda: model(images, sizes, ids, ids))


def pair_bytes(config: Stage1Config, vocabulary: int, fused_passes: int) -> tuple[int, int]:
    """(bytes of weights and optimizer, bytes of activations of one image-text pair) in training at image level in
    fp32: an image and a text pass, the ends of both towers, and so many passes of the fused layers."""
    with torch.device("meta"):
        backbone = build_backbone(config.model, vocabulary, 1, config.max_text)
        model = CoarseModel(backbone, head_width=config.model.head_width, vocab_size=vocabulary)
        images = torch.empty(1, 3, config.image_size, config.image_size)
        ids = torch.ones(1, config.max_text, dtype=torch.int64)

    def step() -> list[Any]:
        image, text = model.image_prefix(images), model.text_prefix(ids, ids)
        passes = [model.fuse(image, text) for _ in range(fused_passes)]
        return [model.image_embedding(image), model.text_embedding(text), *passes]

    return _state_bytes(model), _kept_bytes(model, step)


def _state_bytes(model: nn.Module) -> int:
    return STATE_BYTES * sum(parameter.numel() for parameter in model.parameters())


def _kept_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of all tensors that autograd keeps in a forward pass, but the model's own, each storage once."""
    kept: dict[int, torch.UntypedStorage] = {}  # the storages themselves: a freed one's number may come again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    del result  # until here the graph has held what was kept
    return int(PEAK * sum(storage.nbytes() for number, storage in kept.items() if number not in own))
