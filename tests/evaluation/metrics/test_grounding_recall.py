"""Grounding recall against the recorded output of the reference evaluator, torchvision and hand-counted cases."""

import itertools
import json

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou

from fiber.evaluation.metrics.grounding_recall import (
    Phrase,
    class_agnostic_recall,
    giou,
    iou,
    phrase_recall,
    phrases_of,
    referring_precision,
)


@pytest.mark.parametrize("protocol", ["ANY", "MERGED"])
def test_recall_equals_the_reference_evaluator(entities, protocol):
    phrases, rows, recorded = entities
    result = phrase_recall(phrases, rows, merged=protocol == "MERGED")
    for k, expected in recorded[protocol].items():
        name = "upper_bound" if k == "-1" else f"r{k}"
        assert result[name] == expected.pop("all")
        assert {kind: values[name] for kind, values in result["by_type"].items()} == expected


def test_precision_equals_the_recorded_one_for_both_overlaps(shared):
    recorded = json.loads((shared / "real/refer/iou_vs_giou_on_coco_boxes.json").read_text())
    rows = recorded["rows"]
    corners = np.array([row[:2] for row in rows])
    corners[..., 2:] += corners[..., :2]
    overlap = np.array([iou(pair[:1], pair[1:])[0, 0] for pair in corners])
    general = np.array([giou(pair[:1], pair[1:])[0, 0] for pair in corners])
    np.testing.assert_allclose(overlap, [row[2] for row in rows], atol=1e-12)
    np.testing.assert_allclose(general, [row[3] for row in rows], atol=1e-12)
    targets = {i: pair[0] for i, pair in enumerate(corners)}
    result = referring_precision(
        targets, ({"expression_id": i, "boxes": [pair[1]]} for i, pair in enumerate(corners))
    )
    assert result["p1"] == recorded["acc_iou_0.5"]
    assert result["giou_p1"] == recorded["acc_giou_0.5"]


def test_overlaps_equal_torchvision():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 60, (40, 4))
    boxes[:, 2:] += boxes[:, :2] + 0.1
    ours, others = boxes[:15], boxes[15:]
    pair = torch.from_numpy(ours), torch.from_numpy(others)
    np.testing.assert_allclose(iou(ours, others), box_iou(*pair), atol=1e-14)
    np.testing.assert_allclose(giou(ours, others), generalized_box_iou(*pair), atol=1e-14)


def test_boxes_without_area_overlap_nothing():
    point = np.zeros((1, 4))
    assert iou(point, point) == 0
    assert giou(point, point) == 0
    assert iou(point, np.array([[0.0, 0.0, 2.0, 2.0]])) == 0


A, B, C = [0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]


def test_recall_at_k_counts_the_first_hit_and_empty_lists_miss():
    phrases = [Phrase("p", 0, i, np.array([A], float)) for i in range(4)]
    boxes = [[A], [C, B, A], [C] * 7 + [A], []]
    rows = [{"image_id": "p", "caption": 0, "phrase": i, "boxes": found} for i, found in enumerate(boxes)]
    assert phrase_recall(phrases, rows) == {"r1": 0.25, "r5": 0.5, "r10": 0.75, "upper_bound": 0.75}


def test_overlap_of_exactly_one_half_hits():
    phrase = Phrase("p", 0, 0, np.array([A], float))
    rows = [{"image_id": "p", "caption": 0, "phrase": 0, "boxes": [[0, 0, 10, 5]]}]
    assert phrase_recall([phrase], rows)["r1"] == 1.0


def test_class_agnostic_baseline_equals_the_average_over_all_orders():
    boxes = {0: [A], 1: [B, C], 2: [A, B]}
    phrases = [Phrase("p", 0, i, np.array(truth, float)) for i, truth in boxes.items()]
    phrases.append(Phrase("p", 1, 0, np.array([C], float)))  # the only object of its caption: always found
    orders = list(itertools.permutations([A, B, C]))
    for merged in (False, True):
        expected = {"r1": 0.0, "r5": 0.0, "r10": 0.0}
        for order in orders:
            rows = [{"image_id": "p", "caption": 0, "phrase": i, "boxes": order} for i in boxes]
            rows.append({"image_id": "p", "caption": 1, "phrase": 0, "boxes": [C]})
            recall = phrase_recall(phrases, rows, merged)
            expected = {k: expected[k] + recall[k] / len(orders) for k in expected}
        assert class_agnostic_recall(phrases, merged) == pytest.approx(expected)


def test_phrases_of_a_record():
    record = {
        "image_id": "p",
        "boxes": [{"box": A}, {"box": B}],
        "captions": [
            {"text": "no phrase here"},
            {
                "text": "it and cats",
                "phrases": [{"span": [[0, 2]], "boxes": []}, {"span": [[7, 11]], "boxes": [1, 0]}],
            },
        ],
    }
    (phrase,) = phrases_of(record)
    assert phrase.key == ("p", 1, 1)
    assert phrase.boxes.tolist() == [B, A]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, [A])], "no prediction for 1 of 2 phrases, e.g. image 'p', caption 0, phrase 1"),
        ([(0, [A]), (0, [A])], "image 'p', caption 0, phrase 0 was predicted twice"),
        ([(0, [A]), (2, [A])], "phrase 2 was predicted twice or is not among"),
        ([(0, [[5, 5, 1, 9]])], "phrase 0: boxes must be finite"),
        ([(0, [[0, 0, 1, float("nan")]])], "phrase 0: boxes must be finite"),
    ],
)
def test_bad_phrase_rows_are_named(rows, message):
    phrases = [Phrase("p", 0, i, np.array([A], float)) for i in range(2)]
    with pytest.raises(ValueError, match=message):
        phrase_recall(phrases, [{"image_id": "p", "caption": 0, "phrase": i, "boxes": boxes} for i, boxes in rows])


def test_bad_expression_rows_are_named():
    with pytest.raises(ValueError, match=r"no prediction for 1 of 1 expressions, e\.g\. 7"):
        referring_precision({7: A}, [])
    with pytest.raises(ValueError, match="expression 8 was predicted twice"):
        referring_precision({7: A}, [{"expression_id": 8, "boxes": [A]}])
    for nothing in (
        lambda: referring_precision({}, []),
        lambda: phrase_recall([], []),
        lambda: class_agnostic_recall([]),
    ):
        with pytest.raises(ValueError, match="nothing to score"):
            nothing()
