"""Activations that are computed again in the backward pass instead of being kept."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

T = TypeVar("T")

Checkpointing = bool | Literal["selective"]
"""Nothing is recomputed, everything within a block, or all but matrix products, convolutions and attention."""

_aten = torch.ops.aten
PRODUCTS = {
    *(_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten.convolution.default),
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
}
"""What costs nearly all of a block's FLOP and a half of its memory; what lies between is cheap to compute again."""


def recomputed(how: Checkpointing, function: Callable[..., T], *arguments: Any) -> T:
    """`function(*arguments)`, an activation of which is kept only as `how` says (not False)."""
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    more: dict[str, Any] = {"context_fn": contexts} if how == "selective" else {}
    result: T = checkpoint(function, *arguments, use_reentrant=False, **more)
    return result


def _policy(_: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
