"""The matching loss with and without pairs that carry no weight."""

import math

import pytest
import torch

from fiber.coarse.itm import itm_loss


def test_loss_is_the_mean_over_true_pairs_and_both_kinds_of_negatives():
    logits = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0], [0.0, 5.0], [0.0, 6.0]])
    match = [math.log1p(math.exp(-x)) for x in (1, 2)]
    no_match = [math.log1p(math.exp(x)) for x in (3, 4, 5, 6)]
    everything = torch.tensor([True, True])
    assert float(itm_loss(logits, everything, everything)) == pytest.approx(sum(match + no_match) / 6, rel=1e-6)
    found = itm_loss(logits, torch.tensor([False, True]), torch.tensor([True, False]))
    assert float(found) == pytest.approx((sum(match) + no_match[1] + no_match[2]) / 4, rel=1e-6)


def test_without_any_negative_the_true_pairs_remain():
    logits = torch.tensor([[0.0, 1.0], [0.0, 9.0], [0.0, 9.0]], requires_grad=True)
    none = torch.tensor([False])
    loss = itm_loss(logits, none, none)
    loss.backward()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-6)
    assert logits.grad[1:].abs().sum() == 0
