import pytest
import torch
import torch.nn.functional as F

from fiber.fine.fpn import DropBlock, FeaturePyramid


@pytest.mark.parametrize(("extra", "grid"), [(2, (16, 24)), (0, (16, 24)), (3, (13, 21))])
def test_levels_by_hand(extra: int, grid: tuple[int, int]) -> None:
    """Any number of extra levels, and sides that do not halve evenly."""
    torch.manual_seed(0)
    fpn = FeaturePyramid([8, 16, 32], channels=12, extra=extra).eval()
    grids = [grid]
    for _ in range(2 + extra):
        grids.append(tuple(-(-side // 2) for side in grids[-1]))
    maps = [torch.randn(2, 8 * 2**i, *grids[i]) for i in range(3)]
    levels = fpn(maps)
    assert [tuple(x.shape) for x in levels] == [(2, 12, *g) for g in grids]
    coarse = fpn.laterals[2](maps[2])
    rows = torch.arange(grids[1][0]) * grids[2][0] // grids[1][0]
    columns = torch.arange(grids[1][1]) * grids[2][1] // grids[1][1]
    middle = fpn.laterals[1](maps[1]) + coarse[:, :, rows][:, :, :, columns]  # nearest neighbour
    torch.testing.assert_close(levels[2], fpn.outputs[2](coarse))
    torch.testing.assert_close(levels[1], fpn.outputs[1](middle))
    if extra > 1:
        torch.testing.assert_close(levels[3], fpn.extra[0](levels[2]))  # P6 from P5 itself
        torch.testing.assert_close(levels[4], fpn.extra[1](levels[3].relu()))  # P7 from the ReLU of P6


def test_drop_block_removes_squares_of_all_channels_and_keeps_the_sum() -> None:
    torch.manual_seed(0)
    drop = DropBlock(0.3, size=3)
    x = torch.ones(8, 4, 40, 40)
    y = drop(x)
    gone = y == 0
    assert torch.equal(gone.all(1), gone.any(1))
    # Every dropped pixel belongs to a dropped 3x3 square (cut at the border): opening the mask changes nothing.
    kept = F.pad((~gone[:, :1]).float(), (1, 1, 1, 1))
    centres = F.max_pool2d(kept, 3, stride=1) == 0
    assert torch.equal(F.max_pool2d(centres.float(), 3, stride=1, padding=1).bool(), gone[:, :1])
    expected = 1 - (1 - 0.3 / 9) ** 9  # of the area, away from the border
    assert gone[..., 1:-1, 1:-1].float().mean().item() == pytest.approx(expected, abs=0.03)
    assert y.mean().item() == pytest.approx(1.0, abs=1e-5)


def test_drop_block_runs_in_training_only_and_not_on_the_coarsest_map() -> None:
    torch.manual_seed(0)
    fpn = FeaturePyramid([4, 4, 4], channels=4, extra=0, drop_block=0.3)
    maps = [torch.randn(4, 4, 16 // 2**i, 16 // 2**i) for i in range(3)]
    evaluated = [x.clone() for x in fpn.eval()(maps)]
    assert all(torch.equal(a, b) for a, b in zip(fpn(maps), evaluated, strict=True))
    trained = fpn.train()(maps)
    assert torch.equal(trained[2], evaluated[2])
    assert not torch.equal(trained[0], evaluated[0])
    assert not torch.equal(trained[1], evaluated[1])
