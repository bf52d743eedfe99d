"""Masked language modelling on the fused pass with the true image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.coarse.heads import MlmHead

IGNORED = -100  # label of positions that are not predicted


def mlm_loss(
    head: MlmHead, text: Tensor, labels: Tensor, loss_normalisers: float | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the masked tokens; logits are computed at these alone.

    text (B,L,H), labels (B,L) int64 -> loss (), share of correct predictions (). The sums are divided by the number
    of masked tokens, or by `loss_normalisers`, the mean of that number over the micro-batches and ranks of a step,
    which makes loss and share of a step the same however it is split.
    """
    masked = (labels != IGNORED).nonzero(as_tuple=True)  # once: each time the host waits for their number
    logits, targets = head(text[masked]).float(), labels[masked]
    count = max(len(targets), 1) if loss_normalisers is None else loss_normalisers
    loss = F.cross_entropy(logits, targets, reduction="sum") / count
    correct = (logits.argmax(-1) == targets).sum() / count
    return loss, correct


def masked_tokens(labels: Tensor) -> Tensor:
    """Number () of predicted positions in labels (B,L)."""
    return torch.count_nonzero(labels != IGNORED)
