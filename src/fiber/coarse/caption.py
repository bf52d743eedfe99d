"""Captioning objectives: causal cross-entropy (MLE) and its off-policy weighting (GOLD; Pang & He 2021).

Shape letters: B batch, L text length, H head width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.coarse.mlm import IGNORED
from fiber.coarse.model import CoarseModel

GOLD_FLOOR = 0.1


def caption_labels(ids: Tensor, pad_id: int) -> Tensor:
    """Next-token targets of ids (B,L): shifted left by one; -100 at padding and at the last position."""
    labels = F.pad(ids[:, 1:], (0, 1), value=pad_id)
    return labels.masked_fill(labels == pad_id, IGNORED)


def caption_logits(model: CoarseModel, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Teacher-forced logits (B,L,V) fp32: position t predicts token t+1 of its caption."""
    image = model.backbone.image_tail(model.image_prefix(images))
    tokens = model.caption_tokens(ids, mask, model.backbone.start_decoding(image))
    return model.heads.mlm(tokens).float()


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every position (B,L); 0 where ignored."""
    return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")


def mle_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over all real labels of the batch."""
    return token_losses(logits, labels).sum() / (labels != IGNORED).sum().clamp(min=1)


@torch.no_grad()
def gold_weights(frozen_logits: Tensor, labels: Tensor) -> Tensor:
    """Weight of each target (B,L): w_t = max(0.1, p_t · mean of p over the real labels from t on), p the
    probability a frozen copy of the model gives the target (0 at ignored positions)."""
    real = labels != IGNORED
    probability = frozen_logits.softmax(-1).gather(2, labels.clamp(min=0)[..., None]).squeeze(-1) * real
    ahead = _sum_from(probability) / _sum_from(real.to(probability.dtype)).clamp(min=1)
    return (probability * ahead).clamp(min=GOLD_FLOOR)


def gold_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean over the batch of each caption's weighted mean cross-entropy over its real labels. (The release
    divides by the number of ignored positions instead.)"""
    count = (labels != IGNORED).sum(1).clamp(min=1)
    return ((weights * token_losses(logits, labels)).sum(1) / count).mean()


def _sum_from(x: Tensor) -> Tensor:
    """Sum over positions t..end of x (B,L) for every t."""
    return x.flip(1).cumsum(1).flip(1)
