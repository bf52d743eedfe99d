"""LVIS AP against the official package's recorded output, against pycocotools where the two protocols coincide, and
by hand where they do not."""

import json

import numpy as np
import pytest

from fiber.evaluation.metrics.coco_ap import coco_ap
from fiber.evaluation.metrics.lvis_ap import fixed_ap, lvis_ap


@pytest.fixture(scope="module")
def real(shared):
    folder = shared / "real/lvis"
    names = ("lvis_val_100", "lvis_synthetic_results_100", "expected")
    return [json.loads((folder / f"{name}.json").read_text()) for name in names]


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("standard_max_dets_300", lvis_ap),
        ("standard_max_dets_5", lambda truth, rows: lvis_ap(truth, rows, per_image=5)),
        ("fixed_topk_10000_no_image_limit", fixed_ap),
        ("fixed_topk_3_no_image_limit", lambda truth, rows: fixed_ap(truth, rows, per_category=3)),
    ],
)
def test_all_thirteen_numbers_equal_the_official_package(real, name, score):
    truth, rows, expected = real
    result = score(truth, iter(rows))
    assert result == {key.split("@")[0]: value for key, value in expected[name].items()}


def world(seed: int) -> tuple[dict, list[dict]]:
    """Random objects and detections, many of them overlapping and of equal score; everything judged everywhere."""
    rng = np.random.default_rng(seed)
    categories = [{"id": i, "name": str(i), "frequency": "rcf"[i % 3]} for i in range(1, 6)]
    everywhere = {"neg_category_ids": list(range(1, 6)), "not_exhaustive_category_ids": []}
    images = [{"id": i, "width": 300, "height": 300, **everywhere} for i in range(12)]
    annotations, rows = [], []
    for number in range(150):
        size, corner = rng.choice([8, 30, 60, 150], 2) + rng.integers(0, 9, 2), rng.integers(0, 120, 2)
        bbox = [*map(float, corner), *map(float, size)]
        place = {"image_id": int(rng.integers(12)), "category_id": int(rng.integers(1, 6))}
        annotations.append({"id": number + 1, **place, "bbox": bbox, "area": bbox[2] * bbox[3] * 0.8, "iscrowd": 0})
        for _ in range(3):
            moved = [*(corner + rng.integers(-9, 9, 2)), *(size * rng.uniform(0.8, 1.3, 2))]
            rows.append({**place, "bbox": [float(x) for x in moved], "score": float(rng.integers(10) / 10)})
    return {"images": images, "annotations": annotations, "categories": categories}, rows


@pytest.mark.parametrize("seed", range(4))
def test_judged_everywhere_it_equals_pycocotools(seed):
    truth, rows = world(seed)
    ours, coco = lvis_ap(truth, rows, per_image=None), coco_ap(truth, rows)
    assert 0.1 < coco["AP"] < 0.9
    assert {name: coco[name] for name in coco if name.startswith("AP")} == pytest.approx(
        {name: ours[name] for name in coco if name.startswith("AP")}, rel=1e-13
    )
    assert ours["AR"] == pytest.approx(coco["AR@100"], rel=1e-13)


def test_the_mean_over_frequencies_makes_up_the_whole():
    truth, rows = world(9)
    result = lvis_ap(truth, rows)
    assert result["AP"] == pytest.approx((result["APr"] + 2 * result["APc"] + 2 * result["APf"]) / 5)


BOX, FAR = [10.0, 10.0, 40.0, 40.0], [200.0, 200.0, 40.0, 40.0]


def tiny(**image_two) -> dict:
    images = [{"id": 1, "neg_category_ids": [], "not_exhaustive_category_ids": []}]
    images.append({"id": 2, "neg_category_ids": [], "not_exhaustive_category_ids": []} | image_two)
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 1600.0}]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x", "frequency": "r"}]}


def row(image: int, bbox: list[float], score: float) -> dict:
    return {"image_id": image, "category_id": 1, "bbox": bbox, "score": score}


def test_federated_rules_by_hand():
    hit, elsewhere, beside = row(1, BOX, 0.5), row(2, FAR, 0.9), row(1, FAR, 0.9)
    assert lvis_ap(tiny(), [hit, elsewhere])["AP"] == pytest.approx(1.0)  # nobody looked on image 2
    assert lvis_ap(tiny(neg_category_ids=[1]), [hit, elsewhere])["AP"] == pytest.approx(0.5)  # known not to be there
    assert lvis_ap(tiny(), [hit, beside])["AP"] == pytest.approx(0.5)
    unsure = tiny()
    unsure["images"][0]["not_exhaustive_category_ids"] = [1]
    assert lvis_ap(unsure, [hit, beside])["AP"] == pytest.approx(1.0)  # may be an instance nobody marked
    assert lvis_ap(tiny(), [hit])["APc"] == -1.0  # no common category


def test_the_two_limits_by_hand():
    hit, beside = row(1, BOX, 0.5), row(1, FAR, 0.9)
    assert lvis_ap(tiny(), [hit, beside], per_image=1)["AP"] == 0.0  # the hit was cut off
    rows = [hit, *(row(1, FAR, 0.4) for _ in range(400))]
    assert lvis_ap(tiny(), rows)["AP"] == fixed_ap(tiny(), rows)["AP"] == pytest.approx(1.0)
    assert fixed_ap(tiny(), [hit, beside, row(2, FAR, 0.8)], per_category=2)["AP"] == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_row_order_changes_nothing_when_no_scores_are_equal(seed):
    truth, rows = world(seed)
    rows = [{**entry, "score": entry["score"] + i * 1e-6} for i, entry in enumerate(rows)]
    shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    for score in (lvis_ap, lambda t, r: fixed_ap(t, r, per_category=20)):
        assert score(truth, rows) == score(truth, shuffled)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t["categories"][0].update(frequency="x"), "category 1 has frequency 'x'"),
        (lambda t: t["images"][0].pop("neg_category_ids"), "image 1 has no neg_category_ids"),
        (
            lambda t: t["images"][1].update(neg_category_ids=[8]),
            "image 2: neg_category_ids names the unknown category 8",
        ),
        (lambda t: t["annotations"][0].update(image_id=5), "annotation 1: image 5 or category 1 is unknown"),
    ],
)
def test_bad_ground_truth_is_named(damage, message):
    truth = tiny()
    damage(truth)
    with pytest.raises(ValueError, match=message):
        lvis_ap(truth, [])
