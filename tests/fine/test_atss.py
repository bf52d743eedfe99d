"""ATSS against a loop written from the paper with the statistics module, and its rules one by one."""

import math
import statistics
from collections.abc import Callable

import pytest
import torch

from fiber.fine import atss
from fiber.fine.boxes import make_anchors

GRIDS, SIZES, STRIDES = [(12, 16), (6, 8), (3, 4)], [24, 48, 96], [8, 16, 32]


def assign(boxes: torch.Tensor, levels: list) -> torch.Tensor:
    """Of one image."""
    return atss.assign(boxes, torch.zeros(len(boxes), dtype=torch.int64), levels, 1)[0]


def loop(boxes: list, levels: list, deviation: Callable = statistics.stdev) -> list[int]:
    """One anchor and one box at a time; inclusive pixels."""

    def iou(a: list, b: list) -> float:
        sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1)]
        area = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
        overlap = max(sides[0], 0) * max(sides[1], 0)
        return overlap / (sum(area) - overlap)

    every = [a for level in levels for a in level.tolist()]
    best = [(-1, -1.0)] * len(every)
    for number, box in enumerate(boxes):
        candidates, start = [], 0
        for level in levels:
            middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
            near = sorted(
                range(len(level)),
                key=lambda i, s=start, m=middle: math.dist(
                    m, [(every[s + i][0] + every[s + i][2]) / 2, (every[s + i][1] + every[s + i][3]) / 2]
                ),
            )
            candidates += [start + i for i in near[:9]]
            start += len(level)
        ious = {i: iou(box, every[i]) for i in candidates}
        threshold = statistics.mean(ious.values()) + deviation(ious.values())
        for i, value in ious.items():
            x, y = (every[i][0] + every[i][2]) / 2, (every[i][1] + every[i][3]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if value >= threshold and inside and value > best[i][1]:
                best[i] = (number, value)
    return [number for number, _ in best]


def random_boxes(count: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=draw) * torch.tensor([128.0, 96.0])
    half = 4 + torch.rand(count, 2, generator=draw) * 40
    return torch.cat([centre - half, centre + half], 1)


def test_equals_the_loop_and_needs_the_unbiased_deviation() -> None:
    levels = make_anchors(GRIDS, SIZES, STRIDES)
    biased_differs = False
    for seed in range(6):
        boxes = random_boxes(25, seed)
        found = assign(boxes, levels).tolist()
        assert found == loop(boxes.tolist(), levels)
        assert len(set(found)) > 5
        biased_differs |= found != loop(boxes.tolist(), levels, statistics.pstdev)
    assert biased_differs  # else the boxes would not tell the two deviations apart


@pytest.mark.parametrize(("margin", "inside"), [(0.005, False), (0.02, True)])
def test_centre_must_lie_inside_by_a_hundredth_of_a_pixel(margin: float, inside: bool) -> None:
    """One anchor reaches its own mean IoU, so this rule alone decides; each side in turn is the near one."""
    (level,) = make_anchors([(1, 1)], [16], [8])  # centre (3.5, 3.5)
    near, far = 3.5 - margin, 3.5 + margin
    for box in ([near, 0, 20, 20], [0, near, 20, 20], [-9, 0, far, 20], [0, -9, 20, far]):
        assert (assign(torch.tensor([box]), [level]).item() == 0) == inside


def test_conflict_goes_to_the_highest_overlap() -> None:
    levels = make_anchors(GRIDS, SIZES, STRIDES)
    small, large = [50.0, 38.0, 75.0, 61.0], [46.0, 36.0, 77.0, 66.0]
    alone = [assign(torch.tensor([box]), levels) == 0 for box in (small, large)]
    contested = alone[0] & alone[1]
    both = assign(torch.tensor([small, large]), levels)
    swapped = assign(torch.tensor([large, small]), levels)
    assert contested.any()
    assert torch.equal(both, torch.tensor(loop([small, large], levels)))
    assert torch.equal(torch.where(swapped >= 0, 1 - swapped, -1), both)  # the order of boxes does not matter


def test_no_boxes_and_one_anchor() -> None:
    levels = make_anchors(GRIDS, SIZES, STRIDES)
    assert assign(torch.zeros(0, 4), levels).eq(-1).all()
    (only,) = make_anchors([(1, 1)], [16], [8])
    assert assign(torch.tensor([[0.0, 0.0, 8.0, 8.0]]), [only]).tolist() == [0]


def test_degenerate_box_takes_no_anchor() -> None:
    levels = make_anchors(GRIDS, SIZES, STRIDES)
    boxes = torch.tensor([[40.0, 40.0, 40.0, 40.0], [float("nan")] * 4, [20.0, 20.0, 60.0, 60.0]])
    found = assign(boxes, levels)
    assert set(found.tolist()) == {-1, 2}


def test_images_of_a_batch_are_apart() -> None:
    """Boxes of three images in any order, one image without any: each image as if it were alone."""
    levels, boxes = make_anchors(GRIDS, SIZES, STRIDES), random_boxes(40, 3)
    image = torch.tensor([2, 0] * 20)
    found = atss.assign(boxes, image, levels, 3)
    for row in range(3):
        own = (image == row).nonzero().flatten()
        alone = assign(boxes[own], levels)
        assert torch.equal(found[row], torch.cat([own, own.new_tensor([-1])])[alone])
