"""Cutting maps into windows and the masks of shifted windows, against indexing by hand."""

import pytest
import torch

from fiber.backbone import windows
from fiber.backbone.windows import partition, unpartition


@pytest.mark.parametrize(("size", "window"), [((8, 8), (4, 4)), ((6, 4), (3, 2)), ((5, 7), (5, 7))])
def test_partition_holds_each_window_row_by_row_and_comes_back(size, window):
    x = torch.arange(2 * size[0] * size[1] * 3).view(2, *size, 3)
    parts = partition(x, window)
    per_row = size[1] // window[1]
    for n in range(len(parts) // 2):
        top, left = n // per_row * window[0], n % per_row * window[1]
        expected = x[0, top : top + window[0], left : left + window[1]].flatten(0, 1)
        assert torch.equal(parts[n], expected)
    assert torch.equal(unpartition(parts, window, size), x)


def test_masks_of_many_sizes_are_small_and_as_by_hand() -> None:
    """A byte per token and size is kept, and a few masks: 92 sizes of 400 images once held a gibibyte."""
    windows.regions.cache_clear()
    windows.region_mask.cache_clear()
    sizes = [(12 * rows, 12 * columns) for rows in range(1, 12) for columns in range(1, 9)][:92]
    for size in sizes:
        mask = windows.region_mask(size, (12, 12), (6, 6), torch.device("cpu"))
        region = torch.zeros(size)
        for first, row in enumerate((slice(-12, -6), slice(-6, None)), start=1):
            region[row] += 3 * first
        for first, column in enumerate((slice(-12, -6), slice(-6, None)), start=1):
            region[:, column] += first
        by_window = region.view(size[0] // 12, 12, size[1] // 12, 12).transpose(1, 2).reshape(-1, 144)
        expected = torch.where(by_window[:, None] == by_window[:, :, None], 0.0, windows.REGION_MASK)
        assert torch.equal(mask, expected)
    assert windows.region_mask((24, 24), (12, 12), (0, 0), torch.device("cpu")) is None
    assert windows.regions.cache_info().currsize == len(sizes)
    kept = [windows.regions(size, (12, 12), (6, 6), torch.device("cpu")) for size in sizes]
    assert sum(x.numel() * x.element_size() for x in kept) == sum(rows * columns for rows, columns in sizes)
    assert windows.region_mask.cache_info().maxsize <= 16
