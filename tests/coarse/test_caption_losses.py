"""Captioning objectives by hand."""

import pytest
import torch
import torch.nn.functional as F

from fiber.coarse.caption_losses import caption_labels, gold_loss, gold_weights, mle_loss
from fiber.coarse.mlm import IGNORED

VOCABULARY = 4


def logits_of(probabilities: list[float], labels: list[int]) -> torch.Tensor:
    """Logits (1,L,V) that give each label its probability and share the rest equally."""
    rows = torch.empty(len(labels), VOCABULARY)
    for row, p, label in zip(rows, probabilities, labels, strict=True):
        row.fill_((1 - p) / (VOCABULARY - 1))
        row[max(label, 0)] = p
    return rows.log()[None]


def test_labels_are_the_next_tokens():
    ids = torch.tensor([[0, 7, 8, 2, 1, 1], [0, 5, 6, 7, 8, 2]])
    assert caption_labels(ids, pad_id=1).tolist() == [
        [7, 8, 2, IGNORED, IGNORED, IGNORED],
        [5, 6, 7, 8, 2, IGNORED],
    ]


def test_gold_weights_by_hand():
    labels = [3, 1, 2, IGNORED]
    frozen = logits_of([0.5, 0.9, 0.4, 0.99], labels)
    weights = gold_weights(frozen, torch.tensor([labels]))[0]
    expected = [0.5 * (0.5 + 0.9 + 0.4) / 3, 0.9 * (0.9 + 0.4) / 2, 0.4 * 0.4, 0.1]
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)


def test_gold_weights_have_a_floor_and_no_gradient():
    labels = [3, 1]
    frozen = logits_of([0.2, 0.1], labels).requires_grad_()
    weights = gold_weights(frozen, torch.tensor([labels]))
    assert weights.tolist() == [pytest.approx([0.1, 0.1])]  # 0.2 · 0.15 and 0.1 · 0.1 lie below
    assert not weights.requires_grad


def test_gold_loss_is_the_mean_over_captions_of_their_weighted_means():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, VOCABULARY)
    labels = torch.tensor([[3, 1, 2, IGNORED], [2, IGNORED, IGNORED, IGNORED]])
    weights = torch.tensor([[0.5, 0.25, 1.0, 0.1], [0.3, 0.1, 0.1, 0.1]])
    ce = -logits.log_softmax(-1)
    first = (0.5 * ce[0, 0, 3] + 0.25 * ce[0, 1, 1] + 1.0 * ce[0, 2, 2]) / 3
    torch.testing.assert_close(gold_loss(logits, labels, weights), (first + 0.3 * ce[1, 0, 2]) / 2)


def test_mle_is_the_mean_over_all_real_labels():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, VOCABULARY)
    labels = torch.tensor([[3, 1, 2, IGNORED], [2, IGNORED, IGNORED, IGNORED]])
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(mle_loss(logits, labels), expected)
    assert float(mle_loss(logits, torch.full_like(labels, IGNORED))) == 0.0
