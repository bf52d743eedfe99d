"""What a CPU is spared: packed weights multiply as the layers do, and the largest of a row are those of `topk`."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from fiber import processor
from fiber.processor import SMALLEST, bfloat16_is_faster, focal_loss, largest, nms, pack, packed, weighted_rows

MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])  # of two captions
TOKENS = 6
WIDTH = 512  # WIDTH ** 2 weights are packed, WIDTH * 8 are not


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("AuthenticAMD", "fpu avx512_bf16 sse", True),
        ("AuthenticAMD", "avx512f avx512_bf16x", False),
        ("GenuineIntel", "avx512_bf16 avx512_fp16", False),
        ("GenuineIntel", "avx512_bf16 amx_bf16 amx_tile", True),
        ("GenuineIntel", "avx512f", False),
    ],
)
def test_processors_say_whether_bfloat16_is_faster(tmp_path: Path, vendor: str, flags: str, expected: bool) -> None:
    said = tmp_path / "cpuinfo"
    said.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n")
    assert bfloat16_is_faster(said) is expected
    assert not bfloat16_is_faster(tmp_path / "absent")


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 8))


@pytest.mark.parametrize("rows", [(1,), (5,), (2, 3), (200,)])
@torch.no_grad()
def test_packed_layers_multiply_as_before(rows: tuple[int, ...]) -> None:
    model = layers()
    x = torch.randn(*rows, WIDTH)
    expected = model(x)
    found = pack([model])
    assert found == [model[0], model[2]]
    assert WIDTH**2 >= SMALLEST > WIDTH * 8
    assert pack([model, model[0]]) == []  # once
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def test_packed_layers_learn_as_before() -> None:
    model, plain = layers(), layers()
    pack([model])
    x = torch.randn(4, WIDTH)
    for net in (model, plain):
        net(x).square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=0, rtol=0)


@torch.no_grad()
def test_after_packing_the_weights_are_the_layers_own_again() -> None:
    model, x = layers(), torch.randn(4, WIDTH)
    pack([model[2]])
    with packed([model]):
        assert "forward" in vars(model[0])
    assert "forward" not in vars(model[0])
    assert "forward" in vars(model[2])  # as it was found
    before = model[0](x)
    model[0].weight.zero_()
    assert not torch.allclose(model[0](x), before)
    with pytest.raises(KeyError), packed([model]):
        raise KeyError
    assert "forward" not in vars(model[0])


@torch.no_grad()
def test_what_cannot_be_packed_stays_as_it_is() -> None:
    class Other(nn.Linear):
        pass

    assert pack([layers().bfloat16(), Other(WIDTH, WIDTH), nn.Conv2d(WIDTH, WIDTH, 1), layers().to("meta")]) == []


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("length", [11, 640, 2561, 5 * 8192, 50265])
def test_the_largest_are_those_of_topk(count: int, length: int) -> None:
    torch.manual_seed(length)
    scores = torch.randn(3, length)
    scores[1] = torch.arange(length, dtype=torch.float32)  # rising
    scores[2, : length // 2] = -torch.inf
    scores[2, -1] = 9.0  # behind the last whole block
    best, place = largest(scores, count)
    assert torch.equal(best, scores.topk(count).values)
    assert torch.equal(scores.gather(1, place), best)
    assert all(len(set(row)) == count for row in place.tolist())


def test_equals_among_the_largest_are_all_different() -> None:
    scores = torch.zeros(1, 5000)
    scores[0, ::7] = 1.0
    best, place = largest(scores, 10)
    assert best.tolist() == [[1.0] * 10]
    assert len(set(place[0].tolist())) == 10
    assert all(i % 7 == 0 for i in place[0].tolist())


def test_weighted_rows_and_their_gradients() -> None:
    """Rows that are used often, once and never; numerically, in float64."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 3, dtype=torch.float64, generator=draw, requires_grad=True)
    shares = torch.randn(5, 4, dtype=torch.float64, generator=draw, requires_grad=True)
    index = torch.randint(0, 6, (5, 4), generator=draw, dtype=torch.int32)
    index[0] = 2  # four times at once
    expected = (rows[index.long()] * shares[..., None]).sum(1)
    torch.testing.assert_close(weighted_rows(rows, index, shares), expected)
    assert torch.autograd.gradcheck(lambda rows, shares: weighted_rows(rows, index, shares), (rows, shares))
    assert not weighted_rows(rows.detach(), index, shares.detach()).requires_grad


def test_boxes_are_suppressed_as_torchvision_does_it() -> None:
    """Loaded before the package or after it."""
    torch.manual_seed(0)
    corners = torch.rand(200, 2) * 50
    boxes, scores = torch.cat([corners, corners + torch.rand(200, 2) * 30], 1), torch.rand(200)
    before = nms(boxes, scores, 0.5)
    assert 10 < len(before) < 190

    from torchvision import ops

    assert torch.equal(ops.nms(boxes, scores, 0.5), before)
    assert torch.equal(nms(boxes, scores, 0.5), before)


@pytest.mark.parametrize("gamma", [1.5, 2.0])
@pytest.mark.parametrize("at_once", [1, 200, 2**16])
def test_focal_loss_and_its_gradient_equal_torchvision(
    monkeypatch: pytest.MonkeyPatch, at_once: int, gamma: float
) -> None:
    """Whole and in parts, the last of them smaller."""
    monkeypatch.setattr(processor, "LOGITS", at_once)
    draw = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 40, TOKENS, generator=draw) * 8).requires_grad_()
    target = (torch.rand(2, 40, TOKENS, generator=draw) > 0.5).float()
    expected = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=gamma) * MASK[:, None]
    (wanted,) = torch.autograd.grad(3 * expected.sum(), logits)
    found = focal_loss(logits, target, MASK, 0.25, gamma)
    (gradient,) = torch.autograd.grad(3 * found, logits)
    torch.testing.assert_close(found, expected.sum())
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("gamma", [1.5, 2.0])
def test_the_slope_of_the_focal_loss_is_that_of_finite_differences(gamma: float) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 3, TOKENS, generator=draw, dtype=torch.float64) * 3).requires_grad_()
    target = (torch.rand(2, 3, TOKENS, generator=draw) > 0.5).double()
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, target, MASK, 0.25, gamma), logits)


def test_focal_loss_of_extreme_logits_is_finite() -> None:
    logits = torch.tensor([[[50000.0, -50000.0]]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([[[0.0, 1.0]]]), torch.ones(1, 2), 0.25, 2.0)
    loss.backward()
    assert loss.item() == 0.75 * 50000 + 0.25 * 50000
    assert logits.grad.tolist() == [[[0.75, -0.25]]]


def test_focal_loss_of_no_anchors_and_no_images_is_zero() -> None:
    for shape in ((2, 0, TOKENS), (0, 5, TOKENS)):
        logits = torch.zeros(shape, requires_grad=True)
        loss = focal_loss(logits, torch.zeros(shape), torch.ones(shape[0], TOKENS), 0.25, 2.0)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad.shape == shape
