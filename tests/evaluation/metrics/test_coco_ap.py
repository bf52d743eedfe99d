"""COCO AP against pycocotools' recorded output, and the way rows and records become its input."""

import json
import random

import numpy as np
import pytest

from fiber.evaluation.metrics.coco_ap import COCO_STATS, ROW_KEY, coco_ap, coco_ground_truth, read_detections
from fiber.evaluation.predictions import PredictionWriter, merge_predictions, read_predictions


@pytest.fixture(scope="module")
def real(shared):
    folder = shared / "real/cocoapi"
    names = ("instances_val2014_100", "instances_val2014_fakebbox100_results", "expected")
    return [json.loads((folder / f"{name}.json").read_text()) for name in names]


def test_all_twelve_numbers_equal_the_recorded_ones_and_nothing_is_printed(real, capsys):
    truth, rows, expected = real
    before = json.dumps(truth["annotations"][0])
    result = coco_ap(truth, iter(rows))
    assert list(result) == list(COCO_STATS) == expected["order"]
    assert list(result.values()) == expected["bbox"]
    assert capsys.readouterr().out == ""
    assert json.dumps(truth["annotations"][0]) == before  # the ground truth can be used again


def test_streamed_over_any_number_of_ranks_the_numbers_are_the_same(real, tmp_path):
    truth, rows, expected = real
    rows = [{**row, "score": round(row["score"], 1), "place": i} for i, row in enumerate(rows)]  # full of ties
    results = []
    for world in (1, 3):
        random.Random(world).shuffle(rows)
        for rank in range(world):
            with PredictionWriter(tmp_path, "boxes", rank, world) as writer:
                for row in rows[rank::world]:
                    writer.add(row)
        path = merge_predictions(tmp_path, "boxes", world, ROW_KEY, chunk_bytes=20_000)
        results.append(coco_ap(truth, read_predictions(path)))
    assert results[0] == results[1]
    assert results[0]["AP"] != expected["bbox"][0]  # ties did matter


RECORDS = [
    {
        "image_id": "shapes_1",
        "width": 100,
        "height": 80,
        "boxes": [
            {"box": [10.0, 10.0, 50.0, 40.0], "category": 3},
            {"box": [0.0, 0.0, 100.0, 80.0], "category": 5, "crowd": True, "area": 123.0},
        ],
        "negative_categories": [7],
        "not_exhaustive_categories": [5],
    },
    {"image_id": "shapes_0", "width": 64, "height": 64},
]
CATEGORIES = [{"id": 3, "name": "red circle"}, {"id": 5, "name": "square"}, {"id": 7, "name": "cross"}]


def test_ground_truth_from_records():
    truth = coco_ground_truth(RECORDS, CATEGORIES)
    assert truth["categories"] == CATEGORIES
    assert truth["images"] == [
        {"id": "shapes_1", "width": 100, "height": 80, "neg_category_ids": [7], "not_exhaustive_category_ids": [5]},
        {"id": "shapes_0", "width": 64, "height": 64, "neg_category_ids": [], "not_exhaustive_category_ids": []},
    ]
    first, second = truth["annotations"]
    assert first["bbox"] == [10.0, 10.0, 40.0, 30.0]
    assert (first["area"], first["iscrowd"], first["category_id"]) == (1200.0, 0, 3)
    assert (second["area"], second["iscrowd"]) == (123.0, 1)


def test_ap_by_hand_with_text_ids_and_a_crowd():
    truth = coco_ground_truth(RECORDS, CATEGORIES)
    exact = {"image_id": "shapes_1", "category_id": 3, "bbox": [10, 10, 40, 30], "score": 0.5}
    crowd = {"image_id": "shapes_1", "category_id": 5, "bbox": [20, 20, 9, 9], "score": 0.9}  # inside: ignored
    assert coco_ap(truth, [exact, crowd])["AP"] == pytest.approx(1.0)
    false = {**exact, "image_id": "shapes_0", "score": 0.6}  # ranks before the hit: precision one half
    assert coco_ap(truth, [exact, crowd, false])["AP"] == pytest.approx(0.5)
    shifted = {**exact, "bbox": [10, 10, 40, 20]}  # IoU 2/3: a hit at .50, .55, .60, .65
    assert coco_ap(truth, [shifted])["AP"] == pytest.approx(0.4)


def test_no_detection_at_all_scores_zero():
    result = coco_ap(coco_ground_truth(RECORDS, CATEGORIES), [])
    assert result["AP"] == 0.0
    assert result["APl"] == -1.0  # no object of that size


def test_the_best_of_each_category_survive_pruning_and_ties_stay_in_order():
    rng = np.random.default_rng(1)
    rows = [
        {"image_id": int(rng.integers(9)), "category_id": int(rng.integers(4)), "bbox": [i, 0, 1, 1], "score": score}
        for i, score in enumerate(rng.integers(0, 20, 500) / 20)
    ]
    kept = read_detections(rows, range(9), range(4), per_category=30, prune_at=70)
    expected = []
    for category in range(4):
        of_category = [row for row in rows if row["category_id"] == category]
        expected += sorted(of_category, key=lambda row: -row["score"])[:30]
    assert sorted(kept.boxes[:, 0].tolist()) == sorted(row["bbox"][0] for row in expected)
    assert kept.boxes[:, 0].tolist() == sorted(kept.boxes[:, 0].tolist())  # reading order


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "other"}, "image 'other', which is not in the ground truth"),
        ({"category_id": 4}, "category 4 on image 'shapes_1': no such category"),
        ({"bbox": [1, 2, 3]}, "must have image_id"),
        ({"bbox": [1, 2, 3, -1]}, "must have image_id"),
        ({"bbox": [1, 2, float("nan"), 1]}, "must have image_id"),
        ({"score": None}, "must have image_id"),
    ],
)
def test_bad_rows_are_named(change, message):
    row = {"image_id": "shapes_1", "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.5} | change
    with pytest.raises(ValueError, match=message):
        coco_ap(coco_ground_truth(RECORDS, CATEGORIES), [row])


def test_bad_ground_truth_is_named():
    with pytest.raises(ValueError, match="image 'shapes_0' comes twice"):
        coco_ground_truth([RECORDS[1], RECORDS[1]], CATEGORIES)
    with pytest.raises(ValueError, match=r"image 'x': boxes\[0\] has no category"):
        coco_ground_truth([{"image_id": "x", "width": 9, "height": 9, "boxes": [{"box": [0, 0, 1, 1]}]}], CATEGORIES)
    with pytest.raises(ValueError, match="categories 3 comes twice"):
        coco_ap(coco_ground_truth(RECORDS, CATEGORIES[:1] * 2), [])
    with pytest.raises(ValueError, match="ground truth has no images"):
        coco_ap(coco_ground_truth([], CATEGORIES), [])
