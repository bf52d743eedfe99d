"""Captioning objectives: causal cross-entropy (MLE), its off-policy weighting (GOLD; Pang & He 2021), and REINFORCE
on a reward of whole captions (Rennie et al. 2017).

Shape letters: B batch, S samples per image, R captions, L text length, V vocabulary.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.backbone.fusion import DecoderCache
from fiber.coarse.mlm import IGNORED
from fiber.coarse.model import CoarseModel

GOLD_FLOOR = 0.1


def caption_labels(ids: Tensor, pad_id: int) -> Tensor:
    """Next-token targets of ids (B,L): shifted left by one; -100 at padding and at the last position."""
    labels = F.pad(ids[:, 1:], (0, 1), value=pad_id)
    return labels.masked_fill(labels == pad_id, IGNORED)


def start_captions(model: CoarseModel, images: Tensor) -> DecoderCache:
    """What captions of images (B,3,S,S) attend to, as many of each image as are asked for."""
    return model.backbone.start_decoding(model.backbone.image_tail(model.image_prefix(images)), 0)


def caption_logits(model: CoarseModel, images: DecoderCache, ids: Tensor, mask: Tensor) -> Tensor:
    """Teacher-forced logits (R,L,V) fp32 of captions ids, mask (R,L), R/B of each image of `start_captions` in turn,
    which stay as they are: position t predicts token t+1."""
    return model.heads.mlm(model.caption_tokens(ids, mask, images.fresh(room=0))).float()


def token_losses(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy (B,L) of every position of logits (B,L,V) and labels (B,L) int64; 0 where ignored. `smoothing`:
    the share of each target that is spread over the vocabulary."""
    return F.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
    )


def mle_loss(
    logits: Tensor, labels: Tensor, loss_normalisers: float | Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy () over all real labels of the batch, from logits (B,L,V) and labels (B,L) int64, -100 where
    not real. `loss_normalisers`: what to divide the sum by instead, the mean of that number over the micro-batches
    and ranks of a step (see `mlm_loss`). `smoothing`: see `token_losses`."""
    count = (labels != IGNORED).sum().clamp(min=1) if loss_normalisers is None else loss_normalisers
    return token_losses(logits, labels, smoothing).sum() / count


@torch.no_grad()
def gold_weights(frozen_logits: Tensor, labels: Tensor) -> Tensor:
    """Weight (B,L) of each target, from logits (B,L,V) and labels (B,L): w_t = max(0.1, p_t · mean of p over the real
    labels from t on), p the probability a frozen copy of the model gives the target (0 at ignored positions)."""
    real = labels != IGNORED
    probability = frozen_logits.softmax(-1).gather(2, labels.clamp(min=0)[..., None]).squeeze(-1) * real
    ahead = _sum_from(probability) / _sum_from(real.to(probability.dtype)).clamp(min=1)
    return (probability * ahead).clamp(min=GOLD_FLOOR)


def gold_loss(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over the batch of each caption's weighted mean cross-entropy over its real labels: logits (B,L,V), labels
    and weights (B,L), see `gold_weights` -> (). (The release divides by the number of ignored positions instead.)"""
    count = (labels != IGNORED).sum(1).clamp(min=1)
    return ((weights * token_losses(logits, labels, smoothing)).sum(1) / count).mean()


def mean_log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability per real label of each caption (B,), the end token included: logits (B,L,V), labels (B,L)."""
    return -token_losses(logits, labels).sum(1) / (labels != IGNORED).sum(1).clamp(min=1)


def reinforce_loss(log_probability: Tensor, rewards: Tensor, baseline: Literal["mean", "none"]) -> Tensor:
    """REINFORCE on captions drawn from the model, -Σ (r - b) · log p̄ / B, with 100 times the CIDEr-D as r.

    log_probability (B,S) length-normalised, rewards (B,S) CIDEr-D on its scale 0..10 -> loss (). "mean": b is the
    mean of the other samples of the image (self-critical; S at least 2). "none": b is 100, which makes the release's
    Σ log p̄ · (100 - 100·CIDEr-D) / B.
    """
    rewards, samples = 100 * rewards, rewards.shape[1]
    if baseline == "mean":
        advantage = rewards - (rewards.sum(1, keepdim=True) - rewards) / (samples - 1)
    else:
        advantage = rewards - 100
    return -(advantage * log_probability).sum() / len(rewards)


def _sum_from(x: Tensor) -> Tensor:
    """Sum over positions t..end of x (B,L) for every t."""
    return x.flip(1).cumsum(1).flip(1)
