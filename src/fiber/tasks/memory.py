"""What training needs of memory, by structure: the numbers that a forward pass keeps for the backward pass.

Counted on weightless tensors ("meta"), so it takes no memory and no time at any size.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fiber.backbone import attention
from fiber.backbone.build import build_backbone
from fiber.coarse.model import CoarseModel
from fiber.config.base import TrainConfig
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config
from fiber.fine import deform
from fiber.fine.model import FiberDetector
from fiber.recompute import PRODUCTS
from fiber.tasks.regions import detector_options
from fiber.training.zero import DTYPES

STATE_BYTES = 18
"""Of a trained number: weight, gradient and two moments in fp32, and what the optimizer's step holds on the way."""

PEAK, PEAK_RECOMPUTED = 1.3, 2.2
"""Measured peak of the activations over what is kept: results on their way, and a whole block that is recomputed."""

FUSED_PASSES = {"pretrain": 4, "retrieval_itm": 3, "nlvr2": 2}
"""Passes of the fused layers that a sample takes in training; 1 elsewhere."""

ASPECT = 4 / 3
"""Of the image that stands for a data set's."""


def run_bytes(config: Any, vocabulary: int, ranks: int) -> tuple[int, float, float]:
    """Of a run on `ranks` cards: (parameters, bytes of weights, gradients and moments of a rank as ZeRO shares them,
    bytes of activations of one sample, in the run's precision and the kernels of a card)."""
    train = config.train
    with _kernels_of_a_card():
        if isinstance(config, Stage2Config):
            size = padded(config, max(config.regions.short_sides))
            state, sample = detector_bytes(config, vocabulary, *size, train.precision)
        else:
            state, sample = pair_bytes(config, vocabulary, FUSED_PASSES.get(config.task, 1), train.precision)
    parameters = state // STATE_BYTES
    return parameters, parameters * _state(train, ranks), sample


def padded(config: Stage2Config, side: float) -> tuple[int, int]:
    """(height, width) px of an image of shape 3 : 4 whose short side is `side`, padded as the detector has it."""
    long = min(side * ASPECT, config.regions.max_side)
    return -int(-side // 32) * 32, -int(-long // 32) * 32


def _state(train: TrainConfig, ranks: int) -> float:
    """Bytes per parameter on a rank; with half precision, fp32 masters and sums of gradients, too."""
    weights, gradients, moments = (4, 4, 10) if train.precision == "fp32" else (2, 6, 12)
    moments += 4 if train.ema else 0
    shared = [train.zero_stage >= stage for stage in (3, 2, 1)]
    sizes = [
        size / (ranks if split else 1) for size, split in zip((weights, gradients, moments), shared, strict=True)
    ]
    return sum(sizes[:2] if train.offload == "optimizer" else [] if train.offload == "all" else sizes)


def detector_bytes(
    config: Stage2Config, vocabulary: int, height: int, width: int, precision: str = "fp32"
) -> tuple[int, int]:
    """(bytes of weights and optimizer, bytes of activations of one image of `height` x `width` px) in training a
    detector, the former in fp32, its captions as long as `max_text`."""
    with torch.device("meta"):
        backbone = build_backbone(config.model, vocabulary, 1, config.max_text, fine=True)
        model = FiberDetector(backbone, **detector_options(config), checkpointing=config.model.checkpointing)
        images, ids = torch.empty(1, 3, height, width), torch.ones(1, config.max_text, dtype=torch.int64)
    model, sizes = model.to(DTYPES[precision]), torch.tensor([[height, width]])
    return _state_bytes(model), _kept_bytes(model, lambda: model(images, sizes, ids, ids))


def pair_bytes(config: Stage1Config, vocabulary: int, fused_passes: int, precision: str = "fp32") -> tuple[int, int]:
    """(bytes of weights and optimizer, bytes of activations of one image-text pair) in training at image level, the
    former in fp32: an image and a text pass, the ends of both towers, and so many passes of the fused layers."""
    with torch.device("meta"):
        backbone = build_backbone(config.model, vocabulary, 1, config.max_text)
        model = CoarseModel(backbone, head_width=config.model.head_width, vocab_size=vocabulary)
        images = torch.empty(1, 3, config.image_size, config.image_size)
        ids = torch.ones(1, config.max_text, dtype=torch.int64)

    model = model.to(DTYPES[precision])

    def step() -> list[Any]:
        image, text = model.image_prefix(images), model.text_prefix(ids, ids)
        passes = [model.fuse(image, text) for _ in range(fused_passes)]
        return [model.image_embedding(image), model.text_embedding(text), *passes]

    return _state_bytes(model), _kept_bytes(model, step)


def _state_bytes(model: nn.Module) -> int:
    return STATE_BYTES * sum(parameter.numel() for parameter in model.parameters())


def _kept_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of all tensors that are kept for the backward pass of `forward`, but the model's own, each storage once,
    at their peak. Selective recomputation keeps the results of products, of which autograd does not know."""
    kept: dict[int, torch.UntypedStorage] = {}  # the storages themselves: a freed one's number may come again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **kwargs or {})
            for one in tree_leaves(out) if func in PRODUCTS and "selective" in recomputed else ():
                keep(one)
            return out

    recomputed = {getattr(part, "checkpointing", False) for part in model.modules()}
    with warnings.catch_warnings(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), Products():
        warnings.simplefilter("ignore", FutureWarning)  # of hooks around selective recomputation
        result = forward()
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    del result  # until here the graph has held what was kept
    peak = PEAK_RECOMPUTED if True in recomputed else PEAK
    return int(peak * sum(storage.nbytes() for number, storage in kept.items() if number not in own))


@contextmanager
def _kernels_of_a_card() -> Iterator[None]:
    """Attention and deformable convolution keep what their kernels for cards keep: no logits, no sampled taps."""

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, dropout_p: float) -> Tensor:
        bias = None if attn_mask is None else attn_mask.expand(*q.shape[:3], k.shape[2])
        out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, dropout_p)[0]
        return out

    with (
        patch.object(attention, "explicit_attention", attention.fused_attention),
        patch.object(F, "scaled_dot_product_attention", attend),
        patch.object(deform, "sampled_deform_conv", deform.card_deform_conv),
    ):
        yield
