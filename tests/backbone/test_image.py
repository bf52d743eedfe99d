"""The Swin tower against token-by-token window attention that knows windows and regions explicitly."""

import pytest
import torch

from fiber.backbone.image import PatchMerge, SwinBlock, SwinTower

HEADS, WIDTH, W = 2, 8, 4


def make_block(*, shifted: bool, padded: bool = False) -> SwinBlock:
    torch.manual_seed(0)
    block = SwinBlock(WIDTH, HEADS, W, shifted=shifted, mlp_ratio=2.0, drop_path=0.0, padded=padded)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block.double()


def attend_by_hand(block: SwinBlock, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Window attention of x (N,C) written query by query.

    After rolling a map by -s, the token of row r lies at (r - s) mod height, in window ((r - s) mod height) // w.
    Rows r < s have come round the edge; they and the others of their window must not see each other. Columns alike.
    """
    attn, d = block.attn, WIDTH // HEADS
    size, window, shift = list(grid), [], []
    for axis in range(2):
        if block.padded:
            size[axis] = -(-grid[axis] // W) * W
            window.append(W)
            shift.append(W // 2 if block.shifted else 0)
        else:
            window.append(min(W, grid[axis]))
            shift.append(W // 2 if block.shifted and grid[axis] > W else 0)
    normed = torch.zeros(*size, WIDTH, dtype=x.dtype)
    normed[: grid[0], : grid[1]] = block.norm1(x).view(*grid, WIDTH)
    q, k, v = (attn.qkv(normed)[..., i * WIDTH : (i + 1) * WIDTH].unflatten(-1, (HEADS, d)) for i in range(3))
    places = [(r, c) for r in range(size[0]) for c in range(size[1])]

    def cell(place: tuple[int, int]) -> tuple:
        shifted = [(p - s) % n for p, s, n in zip(place, shift, size, strict=True)]
        return (
            *(p // w for p, w in zip(shifted, window, strict=True)),  # window
            *(p < s for p, s in zip(place, shift, strict=True)),  # came round the edge
        ), shifted

    out = torch.zeros(*grid, WIDTH, dtype=x.dtype)
    for r in range(grid[0]):
        for c in range(grid[1]):
            where, (row, column) = cell((r, c))
            keys = [(place, at) for place in places for there, at in [cell(place)] if there == where]
            for h in range(HEADS):
                logits = [
                    q[r, c, h] @ k[place][h] / d**0.5
                    + attn.relative_position_bias[(row - at[0] + W - 1) * (2 * W - 1) + column - at[1] + W - 1, h]
                    for place, at in keys
                ]
                weights = torch.stack(logits).softmax(0)
                out[r, c, h * d : (h + 1) * d] = sum(
                    w * v[place][h] for w, (place, _) in zip(weights, keys, strict=True)
                )
    return attn.proj(out).flatten(0, 1)


@pytest.mark.parametrize(
    ("grid", "shifted", "padded"),
    [
        ((8, 8), False, False),
        ((8, 8), True, False),
        ((4, 12), True, False),  # one side is exactly a window: no shift along it
        ((3, 3), True, False),  # smaller than the window: it shrinks
        ((2, 8), True, False),
        ((6, 5), False, True),
        ((6, 5), True, True),
        ((3, 4), True, True),  # one window, shifted all the same
        ((9, 1), True, True),
    ],
)
@torch.no_grad()
def test_window_attention_equals_attention_written_by_hand(grid, shifted, padded):
    block = make_block(shifted=shifted, padded=padded)
    x = torch.randn(2, grid[0] * grid[1], WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = block.attend(x, grid)
    for b in range(2):
        torch.testing.assert_close(found[b], attend_by_hand(block, x[b], grid), atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_block_is_two_residual_halves():
    block = make_block(shifted=True)
    x = torch.randn(1, 64, WIDTH, dtype=torch.float64)
    middle = x + block.attend(x, (8, 8))
    hidden = torch.nn.functional.gelu(block.fc1(block.norm2(middle)))
    torch.testing.assert_close(block(x, (8, 8)), middle + block.fc2(hidden))


def test_a_map_that_is_no_multiple_of_the_window_is_refused():
    with pytest.raises(ValueError, match="6x8 feature map is not a multiple of the 4x4 window"):
        make_block(shifted=False).attend(torch.zeros(1, 48, WIDTH, dtype=torch.float64), (6, 8))


@torch.no_grad()
def test_merging_takes_four_neighbours_in_column_order_and_pads_odd_sides():
    merge = PatchMerge(1)
    merge.norm = torch.nn.Identity()
    merge.reduction.weight = torch.nn.Parameter(torch.eye(4)[:2])
    x = torch.arange(1.0, 16.0).view(1, 15, 1)  # 3 rows of 5
    merged, grid = merge(x, (3, 5))
    assert grid == (2, 3)
    assert merged[0, 0].tolist() == [1, 6]  # (0,0) and (1,0)
    assert merged[0, 5].tolist() == [15, 0]  # below row 2 there is padding
    merge.reduction.weight = torch.nn.Parameter(torch.eye(4)[2:])
    assert merge(x, (3, 5))[0][0, 0].tolist() == [2, 7]  # (0,1) and (1,1)


def tower(**changes) -> SwinTower:
    return SwinTower(**({"embed_dim": 8, "depths": (1, 2), "heads": (1, 2), "window": 4} | changes))


def test_drop_path_rises_linearly_over_all_blocks_and_drops_whole_samples():
    rates = [tower(depths=(2, 3), drop_path=0.4).block(p).drop_path for p in tower(depths=(2, 3)).places]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    block = SwinBlock(WIDTH, HEADS, W, shifted=False, mlp_ratio=2.0, drop_path=0.5, padded=False).train()
    torch.manual_seed(0)
    branch = block._drop_path(torch.ones(2000, 3, 2))
    assert set(branch.flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(branch[:, 0, 0], branch[:, 2, 1])
    assert branch[:, 0, 0].mean() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(block.eval()._drop_path(torch.ones(2, 3, 2)), torch.ones(2, 3, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (1, 2, 1)}, r"depths \(1, 2, 1\) and heads \(1, 2\) must name the same stages"),
        ({"heads": (3, 2)}, "width 8 of image stage 1 is not a multiple of its 3 heads"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        tower(**changes)


def test_images_must_be_whole_patches_unless_padded():
    with pytest.raises(ValueError, match=r"image size \(30, 32\) must be a multiple of 4"):
        tower().embed(torch.zeros(1, 3, 30, 32))
    x, grid = tower(padded=True).embed(torch.ones(1, 3, 30, 33))
    assert grid == (8, 9)
    assert x.shape == (1, 72, 8)


def test_a_tower_used_for_inference_first_can_still_be_trained():
    tower = SwinTower(embed_dim=4, depths=(2,), heads=(1,), window=5)  # a window that no other test caches
    x = torch.randn(1, 100, 4)
    with torch.inference_mode():
        tower.run_block((0, 1), x, (10, 10))
    tower.run_block((0, 1), x, (10, 10)).sum().backward()
    assert tower.block((0, 1)).attn.relative_position_bias.grad is not None


def test_a_tower_can_be_built_without_memory():
    with torch.device("meta"):
        assert SwinTower().patch_embed.proj.weight.is_meta
