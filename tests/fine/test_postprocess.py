import pytest
import torch
from tiny_detector import detections

from fiber.fine.boxes import encode
from fiber.fine.dyhead import HeadOutput
from fiber.fine.postprocess import BoxSelection, Detections, class_scores, class_weights

TOKENS = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 1, 0]]).bool()


def test_class_scores_by_hand() -> None:
    p = torch.tensor([0.9, 0.2, 0.8, 0.3, 0.5])
    logits = torch.logit(p)
    weights = class_weights([TOKENS])[0]
    assert class_scores(logits, weights).tolist() == pytest.approx([0.5, 0.3])
    assert class_scores(torch.tensor([0.0, -50000.0, 50000.0, 0.0, 0.0]), weights).tolist() == [0.5, 0.5]
    assert class_weights([TOKENS, TOKENS[:1]])[1].tolist() == [[0.0, 0.5, 0.5, 0.0, 0.0], [0.0] * 5]


def test_a_class_without_token_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"classes \[1\] of the prompt own no token"):
        class_weights([torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()])


def head_output(boxes: torch.Tensor, class_probability: torch.Tensor, central: torch.Tensor) -> tuple:
    """One image, one level with an anchor for each box; two classes with the given scores (N,2)."""
    anchors = torch.cat([boxes[:, :2], boxes[:, :2] + 15], 1)
    tokens = torch.full((len(boxes), 5), 0.01)
    tokens[:, 1:3] = class_probability[:, :1]
    tokens[:, 3] = class_probability[:, 1]
    output = HeadOutput([encode(boxes, anchors)[None]], [torch.logit(central)[None]], [torch.logit(tokens)[None]])
    return output, [anchors]


def run(boxes: list, scores: list, central: list, size: tuple = (100, 100), **selection: object) -> Detections:
    output, anchors = head_output(torch.tensor(boxes), torch.tensor(scores), torch.tensor(central))
    return detections(output, anchors, [TOKENS], torch.tensor([size]), BoxSelection(**selection))[0]


def test_threshold_comes_before_centerness_and_scores_are_rooted() -> None:
    found = run(
        [[0.0, 0, 20, 20], [40.0, 40, 60, 60], [70.0, 0, 90, 20]],
        [[0.5, 0.01], [0.06, 0.04], [0.049, 0.01]],
        [0.9, 0.02, 0.9],
    )
    assert found.labels.tolist() == [0, 0]  # the second survives with 0.06 although 0.06 * 0.02 is small
    assert found.scores.tolist() == pytest.approx([(0.5 * 0.9) ** 0.5, (0.06 * 0.02) ** 0.5], rel=1e-4)
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0, 20, 20], [40, 40, 60, 60]]), atol=1e-3, rtol=0)


def test_boxes_are_clipped_to_the_unpadded_image() -> None:
    found = run([[-20.0, 10, 90, 95]], [[0.5, 0.01]], [0.9], size=(64, 48))
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 10, 47, 63]]))


def test_nms_counts_inclusive_pixels_within_each_class() -> None:
    """Tiny boxes for which the two conventions disagree at 0.6: 2x2 against 2x3 inclusive pixels is 4/6, while
    the same corners as edges have 1/2."""
    boxes = [[0.0, 0, 1, 1], [0.0, 0, 1, 2]]
    assert len(run(boxes, [[0.9, 0.01], [0.8, 0.01]], [0.5, 0.5]).scores) == 1
    both = run(boxes, [[0.9, 0.01], [0.01, 0.8]], [0.5, 0.5])
    assert both.labels.tolist() == [0, 1]  # other classes do not suppress
    assert len(run(boxes, [[0.9, 0.01], [0.8, 0.01]], [0.5, 0.5], nms=0.67).scores) == 2


def test_equals_a_plain_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    low = torch.rand(200, 2, generator=draw) * 60
    boxes = torch.cat([low, low + 10 + torch.rand(200, 2, generator=draw) * 30], 1)
    scores, central = torch.rand(200, 2, generator=draw) * 0.9 + 0.02, torch.rand(200, generator=draw) * 0.9 + 0.02
    output, anchors = head_output(boxes, scores, central)
    for keep, top in ((1000, 1000), (25, 1000), (1000, 60)):
        (ours,) = detections(output, anchors, [TOKENS], torch.tensor([[90, 80]]), BoxSelection(top=top, keep=keep))
        rows = [
            ((s * c.item()) ** 0.5, label, [min(x, m) for x, m in zip(b.tolist(), (79, 89, 79, 89), strict=True)])
            for b, pair, c in zip(boxes, scores.tolist(), central, strict=True)
            for label, s in enumerate(pair)
            if s > 0.05
        ]
        rows = sorted(rows, reverse=True)[:top]
        kept: list = []
        for row in rows:
            if all(row[1] != other[1] or pixel_iou(row[2], other[2]) <= 0.6 for other in kept):
                kept.append(row)
        kept = kept[:keep]
        assert ours.labels.tolist() == [label for _, label, _ in kept]
        assert ours.scores.tolist() == pytest.approx([s for s, _, _ in kept], rel=1e-4)
        torch.testing.assert_close(ours.boxes, torch.tensor([b for *_, b in kept]), atol=1e-3, rtol=0)


def pixel_iou(a: list, b: list) -> float:
    sides = [max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1, 0) for i in (0, 1)]
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return sides[0] * sides[1] / (sum(areas) - sides[0] * sides[1])


def test_nothing_above_the_threshold() -> None:
    found = run([[0.0, 0, 20, 20]], [[0.04, 0.03]], [0.9])
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)
