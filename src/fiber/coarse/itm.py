"""Image-text matching with negatives from the global batch, exchanged between ranks as prefixes."""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber import distributed
from fiber.backbone.states import State

S = TypeVar("S", bound=State)


def exchange(state: S, index: Tensor) -> S:
    """Rows `index` (K,) of the global batch of states; only the drawn rows travel, gradients return to their
    owners."""
    plan = distributed.Exchange(index, len(state))
    return state.map(lambda x: distributed.exchange_rows(x, plan))


def itm_loss(logits: Tensor, valid_text: Tensor, valid_image: Tensor) -> Tensor:
    """Cross-entropy of 3B pairs in the order: true pairs, (image, drawn text), (drawn image, text).

    logits (3B,2) float32, class 1 = match; valid_text and valid_image (B,) bool are False where no negative could be
    drawn: such pairs carry no weight. -> loss ().
    """
    batch = len(valid_text)
    labels = torch.zeros(3 * batch, dtype=torch.int64, device=logits.device)
    labels[:batch] = 1
    weight = torch.cat([torch.ones_like(valid_text), valid_text, valid_image]).to(logits.dtype)
    return (F.cross_entropy(logits, labels, reduction="none") * weight).sum() / weight.sum()
