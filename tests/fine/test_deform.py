"""Both forms of the deformable convolution: against each other, a plain convolution, and a loop."""

import math

import pytest
import torch
import torch.nn.functional as F

from fiber.fine.deform import card_deform_conv, deform_conv, sampled_deform_conv


def operands(grid: tuple[int, int], stride: int, reach: float, whole: bool = False) -> list[torch.Tensor]:
    """x, offset, mask, weight, bias; offsets that leave the map too, or whole pixels."""
    draw = torch.Generator().manual_seed(0)
    out = [-(-side // stride) for side in grid]
    made = [
        torch.randn(2, 4, *grid, generator=draw),
        torch.randn(2, 18, *out, generator=draw) * reach,
        torch.rand(2, 9, *out, generator=draw),
        torch.randn(6, 4, 3, 3, generator=draw),
        torch.randn(6, generator=draw),
    ]
    if whole:
        made[1].round_()
    return [x.requires_grad_() for x in made]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("grid", "stride", "reach"),
    [((7, 9), 1, 1.5), ((8, 12), 2, 4.0), ((1, 1), 1, 0.7), ((5, 3), 2, 30.0), ((9, 7), 1, 0.0)],
)
def test_forms_agree_in_values_and_gradients(grid: tuple[int, int], stride: int, reach: float, whole: bool) -> None:
    """Whole pixels too, where the derivative has two sides: an untrained head samples nothing else."""
    results = []
    for form in (card_deform_conv, sampled_deform_conv):
        inputs = operands(grid, stride, reach, whole)
        value = form(*inputs, stride)
        weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        (value * weights).sum().backward()
        results.append([value.detach(), *(x.grad for x in inputs)])
    for operator, sampled in zip(*results, strict=True):
        torch.testing.assert_close(sampled, operator, atol=1e-4, rtol=1e-4)


def test_one_output_by_hand() -> None:
    """Offsets are (dy, dx) a tap, row by row; bilinear; zero outside."""
    x, offset, mask, weight, bias = (t.detach() for t in operands((6, 7), 2, 1.5))

    def pixel(image: int, channel: int, row: int, column: int) -> float:
        inside = 0 <= row < 6 and 0 <= column < 7
        return x[image, channel, row, column].item() if inside else 0.0

    for form in (deform_conv, card_deform_conv, sampled_deform_conv):
        found = form(x, offset, mask, weight, bias, 2)
        for image, out, i, j in ((0, 0, 0, 0), (1, 5, 1, 2), (0, 3, 2, 3)):
            total = bias[out].item()
            for tap in range(9):
                y = 2 * i - 1 + tap // 3 + offset[image, 2 * tap, i, j].item()
                z = 2 * j - 1 + tap % 3 + offset[image, 2 * tap + 1, i, j].item()
                y0, z0 = math.floor(y), math.floor(z)
                for channel in range(4):
                    value = sum(
                        pixel(image, channel, y0 + a, z0 + b) * abs(1 - a - (y - y0)) * abs(1 - b - (z - z0))
                        for a in (0, 1)
                        for b in (0, 1)
                    )
                    total += weight[out, channel, tap // 3, tap % 3].item() * mask[image, tap, i, j].item() * value
            assert found[image, out, i, j].item() == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_zero_offsets_and_full_masks_are_a_plain_convolution(stride: int) -> None:
    x, offset, mask, weight, bias = operands((7, 9), stride, 1.0)
    plain = F.conv2d(x, weight, bias, stride=stride, padding=1)
    found = deform_conv(x, torch.zeros_like(offset), torch.ones_like(mask), weight, bias, stride)
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)


def test_half_precision_inputs_give_float32() -> None:
    inputs = [x.detach().bfloat16() for x in operands((7, 9), 1, 1.0)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = deform_conv(*inputs)
    torch.testing.assert_close(found, deform_conv(*(x.float() for x in inputs)))


def test_offsets_that_are_no_numbers_give_outputs_that_are_none() -> None:
    """A model that diverges is told by its loss, not by an index out of range."""
    x, offset, mask, weight, bias = (t.detach() for t in operands((7, 9), 1, 1.0))
    wanted = deform_conv(x, offset, mask, weight, bias)
    offset[0, 3, 2, 4], offset[1, 0, 0, 0], offset[1, 0, 6, 8] = math.nan, math.inf, -math.inf
    found = deform_conv(x, offset, mask, weight, bias)
    assert found[0, :, 2, 4].isnan().all()
    changed = torch.zeros(2, 7, 9, dtype=torch.bool)
    changed[0, 2, 4] = changed[1, 0, 0] = changed[1, 6, 8] = True
    torch.testing.assert_close(found[~changed[:, None].expand_as(found)], wanted[~changed[:, None].expand_as(found)])
    assert found[1].isfinite().all()
