import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.fine.dyhead import DynamicBlock, DynamicHead, DynamicReLU, flat_prefix


def levels_of(count: int, channels: int, grid: tuple[int, int] = (8, 12)) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    sides = [tuple(-(-side // 2**i) for side in grid) for i in range(count)]
    return [torch.randn(2, channels, *g, generator=draw) for g in sides]


def test_flat_prefix_reads_across_channels_and_rows() -> None:
    x = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    small = flat_prefix(x, (2, 3))
    for image in range(2):
        flat = [v for channel in x[image].tolist() for row in channel for v in row]
        assert small[image].flatten().tolist() == flat[: 3 * 2 * 3]


@pytest.mark.parametrize(("count", "in_channels"), [(1, 8), (3, 8), (5, 12)])
def test_block_gathers_the_levels_that_exist(count: int, in_channels: int) -> None:
    """Any number of levels and widths; the mean of the weighted branches, by hand."""
    torch.manual_seed(0)
    block = DynamicBlock(in_channels, 8, groups=4)
    torch.nn.init.normal_(block.offset.weight, std=0.3)
    torch.nn.init.normal_(block.attention.weight)
    levels = levels_of(count, in_channels)
    outputs = block(levels)
    assert [x.shape[-2:] for x in outputs] == [x.shape[-2:] for x in levels]
    for i, x in enumerate(levels):
        steer = block.offset(x)
        offset, mask = steer[:, :18], steer[:, 18:].sigmoid()
        branches = [block.same(x, offset, mask)]
        if i:
            branches.append(block.finer(levels[i - 1], offset, mask))
        if i + 1 < count:
            grid = levels[i + 1].shape[-2:]
            coarse = block.coarser(levels[i + 1], flat_prefix(offset, grid), flat_prefix(mask, grid))
            branches.append(F.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=True))
        total = torch.zeros_like(branches[0])
        for b in branches:
            z = block.attention(b.mean((2, 3), keepdim=True)).clamp(min=0)
            total += b * ((z + 3).clamp(0, 6) / 6)
        torch.testing.assert_close(outputs[i], block.relu(total / len(branches)))


def test_dynamic_relu_by_hand() -> None:
    torch.manual_seed(0)
    relu = DynamicReLU(8)
    x = torch.randn(3, 8, 4, 5)
    gates = ((relu.expand(relu.squeeze(x.mean((2, 3))).relu()) + 3).clamp(0, 6) / 6).view(3, 4, 8)
    for image in range(3):
        for channel in range(8):
            a1, b1, a2, b2 = gates[image, :, channel].tolist()
            v = x[image, channel]
            expected = torch.maximum(v * (2 * (a1 - 0.5) + 1) + b1 - 0.5, v * 2 * (a2 - 0.5) + b2 - 0.5)
            torch.testing.assert_close(relu(x)[image, channel], expected)


def head(**options: object) -> DynamicHead:
    torch.manual_seed(0)
    made = DynamicHead(16, levels=3, in_channels=8, channels=8, blocks=2, groups=4, **options)
    torch.nn.init.normal_(made.token_bias)
    return made


def test_token_logits_by_hand() -> None:
    made = head(log_scale=-0.7)
    embedded = torch.randn(2, 5, 16)
    embedded[1, 3:] = 0  # padding
    output = made(levels_of(3, 8), embedded)
    cell = torch.randn(2, 1, 8)
    logits = made.align([cell], embedded)[0]
    weight, bias = made.project_text.weight, made.project_text.bias
    for image in range(2):
        for t in range(5):
            e = embedded[image, t]
            e = e / e.norm() if e.norm() > 0 else e
            expected = cell[image, 0] @ (weight @ e / 2 + bias) / math.exp(-0.7) + e @ made.token_bias + made.bias
            torch.testing.assert_close(logits[image, 0, t], expected[0])
    assert [x.shape for x in output.tokens] == [(2, 96, 5), (2, 24, 5), (2, 6, 5)]
    assert [x.shape for x in output.deltas] == [(2, 96, 4), (2, 24, 4), (2, 6, 4)]
    assert [x.shape for x in output.centerness] == [(2, 96), (2, 24), (2, 6)]


def test_untrained_tokens_match_with_one_percent() -> None:
    made = DynamicHead(16, levels=3, in_channels=8, channels=8, blocks=1, groups=4)
    logits = made.align([torch.zeros(1, 4, 8)], torch.zeros(1, 3, 16))[0]
    torch.testing.assert_close(logits.sigmoid(), torch.full((1, 4, 3), 0.01))


def test_token_logits_are_clamped() -> None:
    made = head(log_scale=-30.0)
    logits = made.align([torch.randn(1, 50, 8)], torch.randn(1, 4, 16))[0]
    assert logits.max().item() == 50000.0
    assert logits.min().item() == -50000.0


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True, "selective"):
        made = head(checkpointing=checkpointing).train()
        levels = [x.requires_grad_() for x in levels_of(3, 8)]
        output = made(levels, torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2)))
        sum(x.square().sum() for x in (*output.deltas, *output.tokens)).backward()
        gradients.append([p.grad for p in made.parameters() if p.grad is not None] + [x.grad for x in levels])
    assert len(gradients[0]) == len(gradients[1]) == len(gradients[2]) > 40
    for plain, recomputed, partly in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
        torch.testing.assert_close(plain, partly)


def test_bfloat16_runs_close_to_float32() -> None:
    made = head().eval()
    levels, embedded = levels_of(3, 8), torch.randn(2, 5, 16)
    exact = made(levels, embedded)
    made.bfloat16()
    rounded = made([x.bfloat16() for x in levels], embedded.bfloat16())
    assert rounded.tokens[0].dtype == torch.bfloat16
    assert (rounded.tokens[0].float() - exact.tokens[0]).abs().max() < 0.1
