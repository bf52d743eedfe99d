import math

import pytest
import torch
from torchvision.ops import generalized_box_iou

from fiber.fine.boxes import clip, decode, encode, giou, make_anchors, pixel_iou


def test_anchors_by_hand() -> None:
    (level,) = make_anchors([(2, 3)], [64], [8])
    expected = [[-28 + 8 * col, -28 + 8 * row, 35 + 8 * col, 35 + 8 * row] for row in range(2) for col in range(3)]
    assert level.tolist() == expected


def test_coder_by_hand() -> None:
    anchor = torch.tensor([[0.0, 0.0, 9.0, 19.0]])  # inclusive sides 10 x 20, centre (4.5, 9.5)
    box = torch.tensor([[5.0, 0.0, 24.0, 9.0]])  # inclusive sides 20 x 10, centre (14.5, 4.5)
    expected = [10 * 10 / 10, 10 * -5 / 20, 5 * math.log(2), 5 * math.log(0.5)]
    assert encode(box, anchor)[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert decode(encode(box, anchor), anchor)[0].tolist() == pytest.approx(box[0].tolist(), abs=1e-5)


def test_decoded_sides_are_capped() -> None:
    anchor = torch.tensor([[0.0, 0.0, 15.0, 15.0]])
    x0, y0, x1, y1 = decode(torch.tensor([[0.0, 0.0, 1e4, 5 * math.log(2)]]), anchor)[0].tolist()
    assert x1 - x0 + 1 == pytest.approx(1000, rel=1e-5)
    assert y1 - y0 + 1 == pytest.approx(32, rel=1e-5)


def test_half_precision_deltas_decode_in_float32() -> None:
    anchors = torch.tensor([[1000.25, 7.0, 1200.25, 70.0]])
    assert torch.allclose(decode(torch.zeros(1, 4).bfloat16(), anchors), anchors)


def test_iou_counts_inclusive_pixels() -> None:
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    others = torch.tensor([[5.0, 5.0, 14.0, 14.0], [10.0, 0.0, 19.0, 9.0], [0.0, 0.0, 9.0, 9.0]])
    assert pixel_iou(boxes, others).tolist() == pytest.approx([25 / 175, 0.0, 1.0])
    touching = torch.tensor([[9.0, 9.0, 18.0, 18.0]])
    assert pixel_iou(boxes, touching).item() == pytest.approx(1 / 199)  # one shared pixel


def test_giou_equals_torchvision_and_survives_degenerate_boxes() -> None:
    draw = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 50, 2, 2, generator=draw).mul(100).sort(dim=2).values.flatten(2)
    expected = generalized_box_iou(corners[0], corners[1]).diagonal()
    torch.testing.assert_close(giou(corners[0], corners[1]), expected, atol=1e-5, rtol=0)
    point = torch.full((1, 4), 3.0, requires_grad=True)
    value = giou(point, torch.full((1, 4), 3.0))
    value.sum().backward()
    assert value.isfinite().all()
    assert point.grad.isfinite().all()


def test_clip_to_the_last_pixel() -> None:
    boxes = torch.tensor([[-5.0, -1.0, 300.0, 50.0], [10.0, 20.0, 30.0, 40.0]])
    assert clip(boxes, torch.tensor([48, 64])).tolist() == [[0, 0, 63, 47], [10, 20, 30, 40]]
    assert clip(boxes, torch.tensor([[48, 64], [31, 21]])).tolist() == [[0, 0, 63, 47], [10, 20, 20, 30]]
