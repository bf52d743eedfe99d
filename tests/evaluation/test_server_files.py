"""Result files: official tools read them and get our summary's AP."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_region_protocols import coco_like, figures, stored

from fiber.evaluation.metrics.coco_ap import COCO_STATS, ROW_KEY
from fiber.evaluation.metrics.lvis_ap import lvis_ap


def official_coco(annotations: Path, results: Path) -> dict[str, float]:
    """What a user of the COCO tools does with both files."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        scorer = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return dict(zip(COCO_STATS, scorer.stats.tolist(), strict=True))


def test_coco_tools_load_both_files_and_agree(shared: Path, tmp_path: Path) -> None:
    real = shared / "real/cocoapi"
    files = (real / "instances_val2014_100.json", real / "instances_val2014_fakebbox100_results.json")
    shards, rows = coco_like(*files, tmp_path)
    ours = figures(shards, "boxes", rows, ROW_KEY, tmp_path)
    results, annotations = (tmp_path / f"boxes_{name}.json" for name in ("results", "annotations"))
    for name, value in official_coco(annotations, results).items():
        assert ours[name.lower()] == pytest.approx(value, abs=1e-6)
    # With the authors' own annotation file just the same: our ids are theirs.
    for name, value in official_coco(files[0], results).items():
        assert ours[name.lower()] == pytest.approx(value, abs=1e-6)
    written = json.loads(results.read_text())
    assert all(row.keys() == {"image_id", "category_id", "bbox", "score"} for row in written)
    assert all(isinstance(row[key], int) for row in written for key in ("image_id", "category_id"))


def test_lvis_results_are_the_300_best_of_an_image(shared: Path, tmp_path: Path) -> None:
    real = shared / "real/lvis"
    shards, rows = coco_like(real / "lvis_val_100.json", real / "lvis_synthetic_results_100.json", tmp_path)
    crowded = rows[0]["image_id"]
    rows += [
        {"image_id": crowded, "place": 10**6 + n, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.0}
        for n in range(400)
    ]
    ours = figures(shards, "boxes", rows, ROW_KEY, tmp_path)
    written = json.loads((tmp_path / "boxes_results.json").read_text())
    assert max(sum(row["image_id"] == i for row in written) for i in {row["image_id"] for row in written}) == 300
    annotations = json.loads((tmp_path / "boxes_annotations.json").read_text())
    authors = json.loads((real / "lvis_val_100.json").read_text())
    for truth in (annotations, authors):
        official = lvis_ap(truth, written)
        assert {f"lvis_{k.lower()}": pytest.approx(x, abs=1e-6) for k, x in official.items()}.items() <= ours.items()
    for field in ("neg_category_ids", "not_exhaustive_category_ids"):
        assert {i["id"]: sorted(i[field]) for i in annotations["images"]} == {
            i["id"]: sorted(i[field]) for i in authors["images"]
        }
    assert all(category["frequency"] in "rcf" for category in annotations["categories"])


def test_a_set_whose_boxes_are_secret_gives_results_without_figures(tmp_path: Path) -> None:
    records = [{"image_id": f"coco_{n}", "width": 9, "height": 9} for n in (10, 9)]
    shards = stored(records, tmp_path / "shards", [{"id": 3, "name": "cat"}])
    rows = [{"image_id": "coco_9", "place": 0, "category_id": 3, "bbox": [1, 1, 2, 2], "score": 0.5}]
    assert figures(shards, "boxes", rows, ROW_KEY, tmp_path) == {}
    (row,) = json.loads((tmp_path / "boxes_results.json").read_text())
    assert row == {"image_id": 9, "category_id": 3, "bbox": [1, 1, 2, 2], "score": 0.5}
    assert not (tmp_path / "boxes_annotations.json").exists()


def test_ids_of_other_sets_are_no_numbers_of_a_server(tmp_path: Path) -> None:
    records = [{"image_id": i, "width": 9, "height": 9, "boxes": []} for i in ("coco_1", "mine_2")]
    shards = stored(records, tmp_path / "shards", [{"id": 3, "name": "cat"}])
    figures(shards, "boxes", [], ROW_KEY, tmp_path)
    assert [path.name for path in tmp_path.glob("boxes_*")] == []
