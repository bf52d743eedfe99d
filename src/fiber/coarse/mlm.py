"""Masked language modelling on the fused pass with the true image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.coarse.heads import MlmHead

IGNORED = -100  # label of positions that are not predicted


def mlm_loss(
    head: MlmHead, text: Tensor, labels: Tensor, loss_normalisers: float | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the masked tokens; logits are computed at these alone.

    text (B,L,H), labels (B,L) int64 -> loss (), share of correct predictions (). The sums are divided by the number
    of masked tokens, or by `loss_normalisers`, the mean of that number over the micro-batches and ranks of a step,
    which makes loss and share of a step the same however it is split.
    """
    masked = labels != IGNORED
    logits, targets = head(text[masked]).float(), labels[masked]
    count = loss_normalisers or max(len(targets), 1)
    loss = F.cross_entropy(logits, targets, reduction="sum") / count
    correct = (logits.argmax(-1) == targets).sum() / count
    return loss, correct


def masked_tokens(labels: Tensor) -> int:
    """Number of predicted positions in labels (B,L)."""
    return int(torch.count_nonzero(labels != IGNORED))
