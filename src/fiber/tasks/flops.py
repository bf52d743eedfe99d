"""What a step costs by its structure.

One multiply-add is 2 FLOP; only matrix products and convolutions count (norms, softmax and GELU add about 1 %).
Training costs 3 x forward: backward needs a product for the inputs and one for the weights. What activation
checkpointing computes again is not counted: it is no useful work.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn

from fiber.coarse.model import CoarseModel
from fiber.training.speed import FlopsPerSample

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class PairCost:
    """Forward FLOP of the parts of one image-text pair, for one image and one text each.

    `image_prefix`, `text_prefix`: up to the first fused pair. `image_tail`, `text_tail`: the unfused rest with its
    contrastive head. `fusion`: the fused pairs and the pooling of their outputs. `words`: the masked-language head
    at the masked positions.
    """

    image_prefix: int
    text_prefix: int
    image_tail: int
    text_tail: int
    fusion: int
    words: int

    @property
    def shared(self) -> int:
        """A pre-training step with shared prefixes: one image prefix, two text prefixes (plain and masked), both
        tails, four fused passes (masked language, and matching with three kinds of pairs)."""
        return self.image_prefix + 2 * self.text_prefix + self._tails + 4 * self.fusion + self.words

    @property
    def five_passes(self) -> int:
        """The same step when each of contrastive, masked-language and three matching passes begins at the pixels."""
        return 5 * (self.image_prefix + self.text_prefix) + self._tails + 4 * self.fusion + self.words

    @property
    def match(self) -> int:
        """Matching one pair from the pixels and ids; with cached prefixes it costs `fusion`."""
        return self.image_prefix + self.text_prefix + self.fusion

    @property
    def _tails(self) -> int:
        return self.image_tail + self.text_tail


def pair_cost(model: CoarseModel, image_size: int, text_length: int, masked_tokens: int) -> PairCost:
    """Cost of a `coarse.model.CoarseModel` at an image side in pixels and a text length in tokens (padding counts: it
    is computed), with `masked_tokens` predicted per text.

    Counted on a weightless copy, so it takes no time or memory at any size. Weights must be whole (before ZeRO-3
    partitions them). FIBER-B at 384 px and 40 tokens: 252 GFLOP (126 GMAC) shared, 546 (273) in five passes.
    """
    model = weightless(model).eval()
    images = torch.empty(1, 3, image_size, image_size, device="meta")
    ids = torch.ones(1, text_length, dtype=torch.int64, device="meta")
    image, image_prefix = count(model.image_prefix, images)
    text, text_prefix = count(model.text_prefix, ids, ids)
    fused, fusion = count(model.fuse, image, text)
    return PairCost(
        image_prefix=image_prefix,
        text_prefix=text_prefix,
        image_tail=count(model.image_embedding, image)[1],
        text_tail=count(model.text_embedding, text)[1],
        fusion=fusion,
        words=count(model.heads.mlm, fused.text[0, :masked_tokens])[1],
    )


def image_cost(model: nn.Module, sides: tuple[int, int], text_length: int) -> FlopsPerSample:
    """Cost of a `fine.model.FiberDetector`: a function of a batch's shape -> forward FLOP of one of its images,
    towers, fusion, pyramid and head, at the padded size (padding counts: it is computed).

    Counted at both `sides` (px, squares) and at `text_length` tokens; between, and beyond, linear in the area, which
    only the padding of windows disturbs (2 % for FIBER-B at 480 to 800 px). Shorter texts are counted as full ones
    (5 % at most there). FIBER-B at 800 px and 256 tokens: 746 GFLOP. Deformable convolutions count as ordinary ones.
    """
    model = weightless(model).eval()
    areas = [side * side for side in sides]

    @cache
    def line() -> tuple[float, float]:
        small, large = (float(_detector_flops(model, side, side, text_length)) for side in sides)
        return small, (large - small) / (areas[1] - areas[0]) if areas[1] != areas[0] else small / areas[0]

    def cost(shape: torch.Size) -> float:
        small, slope = line()
        return small + slope * (shape[-2] * shape[-1] - areas[0])

    return cost


def _detector_flops(model: nn.Module, height: int, width: int, text_length: int) -> int:
    images = torch.empty(1, 3, height, width, device="meta")
    ids = torch.ones(1, text_length, dtype=torch.int64, device="meta")
    return count(model, images, torch.tensor([[height, width]]), ids, ids)[1]


@torch.no_grad()
def count(function: Callable[..., T], *arguments: Any) -> tuple[T, int]:
    """Result of a call and its forward FLOP."""
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    with FlopCounterMode(display=False) as counter:
        result = function(*arguments)
    return result, counter.get_total_flops()


def weightless(model: M) -> M:
    """A copy whose tensors have shapes and no contents."""
    empty: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in model.parameters()}
    empty |= {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    return copy.deepcopy(model, empty)
