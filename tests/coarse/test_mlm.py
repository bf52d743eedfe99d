"""Masked-language loss at the masked positions alone against the loss over all logits."""

import pytest
import torch
import torch.nn.functional as F

from fiber.coarse.heads import MlmHead
from fiber.coarse.mlm import IGNORED, masked_tokens, mlm_loss

B, L, WIDTH, VOCABULARY = 4, 7, 8, 30


def make() -> tuple[MlmHead, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(0, VOCABULARY, (B, L))
    labels[torch.rand(B, L) > 0.4] = IGNORED
    labels[2] = IGNORED  # a text without any
    return MlmHead(WIDTH, VOCABULARY), torch.randn(B, L, WIDTH, requires_grad=True), labels


def test_loss_accuracy_and_gradients_equal_those_over_all_positions():
    head, text, labels = make()
    logits = head(text)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    wanted = torch.autograd.grad(expected, [text, *head.parameters()])
    loss, correct = mlm_loss(head, text, labels)
    found = torch.autograd.grad(loss, [text, *head.parameters()])
    torch.testing.assert_close(loss, expected)
    for ours, plain in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, plain)
    hits = (logits.argmax(-1) == labels)[labels != IGNORED]
    assert float(correct) == pytest.approx(float(hits.float().mean()))
    assert masked_tokens(labels) == len(hits)


def test_mean_items_make_a_step_independent_of_its_split():
    head, text, labels = make()
    whole, _ = mlm_loss(head, text, labels)
    loss_normalisers = masked_tokens(labels) / B
    parts = [mlm_loss(head, text[b : b + 1], labels[b : b + 1], loss_normalisers)[0] for b in range(B)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_nothing_masked_is_a_loss_of_zero_with_a_gradient():
    head, text, labels = make()
    loss, correct = mlm_loss(head, text, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss.item() == correct.item() == 0.0
    assert head.decoder.weight.grad.abs().sum() == 0
