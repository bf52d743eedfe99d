"""The contrastive loss and the draw of hard negatives against loops over rows and columns."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.coarse.itc import FeatureQueue, itc_loss, negative_weights, sample_columns

WIDTH = 6
TAU = torch.tensor([0.2])


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, WIDTH, generator=generator), dim=-1)


def loss_of(
    image: Tensor, text: Tensor, ids: list[int], queue: FeatureQueue | None = None, tau: Tensor = TAU, gradient=False
) -> Tensor:
    queue = FeatureQueue(0, WIDTH) if queue is None else queue
    return itc_loss(image, text, torch.tensor(ids), tau, queue, gather_gradient=gradient)[0]


def loss_by_hand(queries: Tensor, columns: Tensor, query_ids: list[int], column_ids: list[int]) -> float:
    """Mean cross-entropy of the own column (same index) among it and all columns of other images."""
    losses = []
    for b, identity in enumerate(query_ids):
        logits = [float(queries[b] @ column) / 0.2 for column in columns]
        allowed = [x for c, x in enumerate(logits) if c == b or column_ids[c] != identity]
        losses.append(math.log(sum(map(math.exp, allowed))) - logits[b])
    return sum(losses) / len(losses)


# ---------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("ids", [[1, 2, 3, 4], [1, 2, 1, 1], [5, 5, 5, 5], [7]])
def test_loss_equals_the_sum_over_columns_of_other_images(ids):
    image, text = unit(len(ids)), unit(len(ids), seed=1)
    expected = (loss_by_hand(image, text, ids, ids) + loss_by_hand(text, image, ids, ids)) / 2
    assert float(loss_of(image, text, ids)) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    if len(set(ids)) == 1:
        assert float(loss_of(image, text, ids)) == pytest.approx(0.0, abs=1e-7)


def test_an_empty_queue_changes_nothing():
    image, text, ids = unit(3), unit(3, seed=1), [1, 2, 3]
    torch.testing.assert_close(loss_of(image, text, ids, FeatureQueue(8, WIDTH)), loss_of(image, text, ids))


@pytest.mark.parametrize("filled", [3, 5])
def test_queued_features_are_plain_columns_and_empty_slots_are_none(filled):
    queue, ids, old = FeatureQueue(5, WIDTH), [1, 2, 3], [9, 2, 8, 7, 1][:filled]
    queue.enqueue(unit(filled, seed=2), unit(filled, seed=3), torch.tensor(old))
    image, text = unit(3), unit(3, seed=1)
    columns = torch.cat([text, unit(filled, seed=3)]), torch.cat([image, unit(filled, seed=2)])
    expected = sum(loss_by_hand(q, c, ids, ids + old) for q, c in zip((image, text), columns, strict=True)) / 2
    assert float(loss_of(image, text, ids, queue)) == pytest.approx(expected, rel=1e-5)


def test_gradient_flows_through_queries_and_temperature_and_into_columns_only_on_request():
    for gather in (False, True):
        found = []
        for own in (True, False):
            image, text, tau = unit(3), unit(3, seed=1), TAU.clone()
            for x in (image, text, tau):
                x.requires_grad_()
            if own:
                loss = loss_of(image, text, [1, 2, 3], FeatureQueue(4, WIDTH), tau, gather)
            else:
                columns = (text, image) if gather else (text.detach(), image.detach())
                target = torch.arange(3)
                loss = F.cross_entropy(image @ columns[0].T / tau, target) / 2
                loss = loss + F.cross_entropy(text @ columns[1].T / tau, target) / 2
            loss.backward()
            found.append((image.grad, text.grad, tau.grad))
        for ours, plain in zip(*found, strict=True):
            torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("ids", [[1, 2, 3, 4], [5, 5, 5, 5], [7]])
def test_losses_and_draws_stay_finite(dtype, scale, ids):
    image, text = ((unit(len(ids), seed=s) * scale).to(dtype).requires_grad_() for s in (0, 1))
    queue = FeatureQueue(4, WIDTH).to(dtype)
    queue.enqueue(image.detach()[:1], text.detach()[:1], torch.tensor([99]))
    tau = torch.tensor([1.0], dtype=dtype)
    loss, contrast = itc_loss(image, text, torch.tensor(ids), tau, queue, gather_gradient=True)
    loss.backward()
    assert loss.isfinite()
    assert image.grad.isfinite().all()
    weights = negative_weights(contrast.image_to_text, contrast.same_image, hard=True)
    index, valid = sample_columns(weights, torch.full((len(ids),), 0.999999999))
    assert weights.isfinite().all()
    assert ((index >= 0) & (index < len(ids))).all()
    assert valid.all() == (len(set(ids)) > 1)


# ---------------------------------------------------------------------------------------------- the queue


@pytest.mark.parametrize("sizes", [[3, 3, 3], [5, 5], [7], [2, 6, 4, 1]])
def test_the_queue_holds_the_newest_features_and_wraps_around(sizes):
    queue, everything, start = FeatureQueue(5, WIDTH), [], 0
    for size in sizes:
        ids = torch.arange(start, start + size)
        rows = ids[:, None].float().expand(size, WIDTH)
        queue.enqueue(rows, -rows, ids)
        everything, start = [*everything, *ids.tolist()], start + size
        newest = sorted(everything[-5:])
        held = queue.filled()
        assert sorted(queue.image_id[held].tolist()) == newest
        assert torch.equal(queue.image[held][:, 0], queue.image_id[held].float())
        assert torch.equal(queue.text[held], -queue.image[held])


def test_the_graph_survives_that_the_queue_is_overwritten_before_backward():
    queue, image, text = FeatureQueue(3, WIDTH), unit(2).requires_grad_(), unit(2, seed=1)
    queue.enqueue(unit(3, seed=2), unit(3, seed=3), torch.tensor([7, 8, 9]))
    expected = torch.autograd.grad(loss_of(image, text, [1, 2], queue), image)[0]
    loss = loss_of(image, text, [1, 2], queue)
    queue.enqueue(unit(3, seed=4), unit(3, seed=5), torch.tensor([4, 5, 6]))
    assert torch.equal(torch.autograd.grad(loss, image)[0], expected)


def test_the_published_queue_takes_less_than_100_mb():
    """4096 slots at head width 768 whatever the image size; the release's pixel queue at 384 px takes 7.2 GB."""
    size = sum(x.numel() * x.element_size() for x in FeatureQueue(4096, 768).buffers())
    assert size < 26e6


# ---------------------------------------------------------------------------------------------- negatives


def test_hard_weights_are_the_softmax_without_the_columns_of_the_own_image():
    logits = torch.tensor([[2.0, 0.0, -1.0, 5.0], [30.0, 0.0, -50.0, -60.0]])
    same = torch.tensor([[True, False, False, True], [True, False, False, False]])
    weights = negative_weights(logits, same, hard=True)
    total = sum(math.exp(x) for x in (2, 0, -1, 5))
    assert weights[0].tolist() == pytest.approx([0, 1 / total + 1e-9, math.exp(-1) / total + 1e-9, 0], rel=1e-5)
    total = math.exp(30) + 1
    assert weights[1].tolist() == pytest.approx([0, 1 / total + 1e-9, 1e-9, 1e-9], rel=1e-4)
    assert negative_weights(logits, same, hard=False).tolist() == [[0, 1, 1, 0], [0, 1, 1, 1]]


def test_draws_follow_the_weights_and_never_show_the_own_image():
    weights = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    uniform = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    index, valid = sample_columns(weights.expand(20_000, -1), uniform)
    share = torch.bincount(index, minlength=6) / 20_000
    assert valid.all()
    assert share[[0, 2, 5]].tolist() == [0, 0, 0]
    torch.testing.assert_close(share, weights, atol=0.015, rtol=0)


def test_draws_at_both_ends_of_the_unit_interval_have_weight():
    weights = torch.tensor([[0.0, 1e-9, 1.0, 1e-9, 0.0]])
    for uniform, expected in ((0.0, 1), (1 - 2**-53, 3)):
        index, valid = sample_columns(weights, torch.tensor([uniform], dtype=torch.float64))
        assert (index.item(), valid.item()) == (expected, True)


def test_a_row_without_other_images_is_not_valid():
    index, valid = sample_columns(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([0.3, 0.3]))
    assert valid.tolist() == [False, True]
    assert index.tolist() == [0, 1]


def test_draws_depend_on_the_row_alone_however_the_batch_is_split():
    generator = torch.Generator().manual_seed(0)
    logits, uniform = torch.randn(8, 8, generator=generator), torch.rand(8, generator=generator, dtype=torch.float64)
    same = torch.eye(8, dtype=torch.bool)
    whole = sample_columns(negative_weights(logits, same, hard=True), uniform)[0]
    for size in (1, 2, 4):
        parts = zip(logits.split(size), same.split(size), uniform.split(size), strict=True)
        drawn = [sample_columns(negative_weights(x, s, hard=True), u)[0] for x, s, u in parts]
        assert torch.equal(torch.cat(drawn), whole)
