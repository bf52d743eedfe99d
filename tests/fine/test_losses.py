import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

from fiber.fine.boxes import decode, make_anchors
from fiber.fine.dyhead import HeadOutput
from fiber.fine.losses import Targets, assign_batch, centerness, detection_losses, token_targets, totals

LENGTH = 6
LEVELS = make_anchors([(8, 8), (4, 4)], [24, 48], [8, 16])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


def output() -> HeadOutput:
    draw = torch.Generator().manual_seed(0)
    return HeadOutput(
        [torch.randn(2, len(a), 4, generator=draw).requires_grad_() for a in LEVELS],
        [torch.randn(2, len(a), generator=draw).requires_grad_() for a in LEVELS],
        [torch.randn(2, len(a), LENGTH, generator=draw).requires_grad_() for a in LEVELS],
    )


def targets(boxes: list, images: list) -> Targets:
    tokens = torch.zeros(len(boxes), LENGTH)
    for row in range(len(boxes)):
        tokens[row, 1 + row % 3] = 1
    return Targets(torch.tensor(boxes).view(-1, 4), torch.tensor(images, dtype=torch.int64), tokens)


BOXES = targets([[8.0, 8, 31, 31], [30, 20, 60, 62], [4, 30, 40, 60]], [0, 1, 1])


def run(wanted: Targets, limit: int = 100) -> dict[str, torch.Tensor]:
    found = assign_batch(wanted, LEVELS, 2)
    return detection_losses(output(), LEVELS, MASK, wanted, found, totals(found, wanted, LEVELS), limit)


def test_centerness_by_hand() -> None:
    box, anchor = torch.tensor([[0.0, 0.0, 10.0, 8.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]])  # centre (2, 2)
    assert centerness(box, anchor).item() == pytest.approx(math.sqrt(2 / 8 * 2 / 6))


def test_losses_by_hand() -> None:
    """Sums over every positive anchor, one by one; the caption fills the limit, so negatives learn "no object"."""
    losses, out, every = run(BOXES, limit=LENGTH), output(), torch.cat(LEVELS)
    deltas, central, tokens = (torch.cat(x, 1) for x in (out.deltas, out.centerness, out.tokens))
    found = assign_batch(BOXES, LEVELS, 2)
    matched = {(int(i), int(a)): int(t) for i, a, t in zip(found.image, found.anchor, found.target, strict=True)}
    assert {BOXES.image[t].item() == i for (i, _), t in matched.items()} == {True}
    token = box = bce = weight = 0.0
    for image in range(2):
        for anchor in range(len(every)):
            wanted = torch.zeros(LENGTH)
            wanted[-1] = 1
            if (image, anchor) in matched:
                target = matched[image, anchor]
                wanted = BOXES.tokens[target]
                own, a = BOXES.boxes[target : target + 1], every[anchor : anchor + 1]
                c = centerness(own, a)[0]
                giou = generalized_box_iou(decode(deltas[image, anchor][None], a), own)[0, 0]
                box, weight = box + c * (1 - giou), weight + c
                bce += F.binary_cross_entropy_with_logits(central[image, anchor], c)
            attended = MASK[image].bool()
            token += sigmoid_focal_loss(
                tokens[image, anchor][attended], wanted[attended], alpha=0.25, gamma=2, reduction="sum"
            )
    count = len(matched)
    assert count > 6
    assert losses["token"].item() == pytest.approx((token / count).item(), rel=1e-5)
    assert losses["box"].item() == pytest.approx((box / weight).item(), rel=1e-5)
    assert losses["centerness"].item() == pytest.approx((bce / count).item(), rel=1e-5)


def test_no_object_is_the_last_column_of_a_full_caption_only() -> None:
    found = assign_batch(BOXES, LEVELS, 2)
    shape = torch.Size((2, 80, LENGTH))
    full, shorter = (token_targets(found, BOXES, shape, limit) for limit in (LENGTH, LENGTH + 1))
    positives = torch.zeros(2, 80, dtype=torch.bool)
    positives[found.image, found.anchor] = True
    assert full[~positives][:, -1].eq(1).all()
    assert full[~positives][:, :-1].eq(0).all()
    assert shorter[~positives].eq(0).all()
    assert torch.equal(full[positives], shorter[positives])
    assert torch.equal(full[found.image, found.anchor], BOXES.tokens[found.target])


@pytest.mark.parametrize("wanted", [targets([], []), targets([[40.0, 40, 40, 40]], [0])])
def test_without_positives_token_counts_and_the_rest_is_zero_with_graph(wanted: Targets) -> None:
    out = output()
    found = assign_batch(wanted, LEVELS, 2)
    losses = detection_losses(out, LEVELS, MASK, wanted, found, totals(found, wanted, LEVELS), LENGTH)
    assert losses["box"].item() == losses["centerness"].item() == 0.0
    assert losses["token"].item() > 1
    sum(losses.values()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (*out.deltas, *out.centerness, *out.tokens))


def test_normalised_by_the_mean_over_ranks() -> None:
    found = assign_batch(BOXES, LEVELS, 2)
    own = totals(found, BOXES, LEVELS)
    assert own[0].item() == len(found.anchor)
    alone = detection_losses(output(), LEVELS, MASK, BOXES, found, own, 100)
    crowded = detection_losses(output(), LEVELS, MASK, BOXES, found, own * 3, 100)
    few = detection_losses(output(), LEVELS, MASK, BOXES, found, own * 1e-3, 100)
    for name in alone:
        assert crowded[name].item() == pytest.approx(alone[name].item() / 3, rel=1e-5)
    assert few["token"].item() == pytest.approx(alone["token"].item() * own[0].item(), rel=1e-5)  # N >= 1
