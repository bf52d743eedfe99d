"""Recorded results of the official tools, reached the way an evaluation goes: records in shards, predictions of
several ranks in files, merged and scored."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fiber.data.convert import coco_format
from fiber.data.convert.items import RawImage
from fiber.data.convert.writer import write_dataset
from fiber.data.records import Record, Sample
from fiber.data.shards import ShardSet
from fiber.evaluation.metrics.coco_ap import ROW_KEY
from fiber.evaluation.predictions import PredictionWriter, Row, merge_predictions
from fiber.evaluation.region_scores import score

RANKS = 3


def stored(records: list[Record], folder: Path, categories: list[dict] | None = None) -> ShardSet:
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "PNG")  # nothing here looks at images
    samples = [Sample(str(r["image_id"]), [("png", stream.getvalue())], r | {"source": "real"}) for r in records]
    write_dataset(samples, folder, name="real", split="val", provenance="", licence="", categories=categories)
    return ShardSet(folder)


def figures(shards: ShardSet, field: str, rows: list[Row], key: tuple[str, ...], folder: Path) -> dict[str, float]:
    """Rows fall to the ranks at random, as images would."""
    random.Random(0).shuffle(rows)
    for rank in range(RANKS):
        with PredictionWriter(folder, field, rank, RANKS) as writer:
            for row in rows[rank::RANKS]:
                writer.add(row)
    return score(shards, field, merge_predictions(folder, field, RANKS, key, chunk_bytes=20_000))


def coco_like(truth: Path, results: Path, folder: Path) -> tuple[ShardSet, list[Row]]:
    """Shards of an annotation file, by the converter's reader and with ids as it makes them, and results as rows."""
    classes = coco_format.categories(truth)
    items = coco_format.items(
        truth,
        "real",
        {c["id"] for c in classes},
        lambda image: f"coco_{image['id']}",
        lambda image: RawImage((Path(f"{image['id']}.jpg"),)),
    )
    records = [item.record | dict(zip(("width", "height"), item.size, strict=True)) for item in items]
    rows = [
        row | {"image_id": f"coco_{row['image_id']}", "place": place}
        for place, row in enumerate(json.loads(results.read_text()))
    ]
    return stored(records, folder / "shards", classes[::-1]), rows


OWN = ("absent_false_rate", "detect_threshold", "detect_f1")
"""Ours alone: tests/evaluation/metrics/test_absent_rate.py, tests/evaluation/test_report.py."""


def test_coco_to_the_last_digit(shared: Path, tmp_path: Path) -> None:
    real = shared / "real/cocoapi"
    files = (real / "instances_val2014_100.json", real / "instances_val2014_fakebbox100_results.json")
    shards, rows = coco_like(*files, tmp_path)
    expected = json.loads((real / "expected.json").read_text())
    found = figures(shards, "boxes", rows, ROW_KEY, tmp_path)
    own = {name: found.pop(name) for name in OWN}
    assert all(0 < value < 1 for value in own.values()), own
    assert found == {name.lower(): x for name, x in zip(expected["order"], expected["bbox"], strict=True)}


def test_lvis_standard_and_fixed_to_the_last_digit(shared: Path, tmp_path: Path) -> None:
    """COCO's numbers are not among them: the annotations say that they are not exhaustive."""
    real = shared / "real/lvis"
    shards, rows = coco_like(real / "lvis_val_100.json", real / "lvis_synthetic_results_100.json", tmp_path)
    recorded = json.loads((real / "expected.json").read_text())
    expected = {}
    for name, setting in (("lvis", "standard_max_dets_300"), ("fixed", "fixed_topk_10000_no_image_limit")):
        expected |= {f"{name}_{key.split('@')[0].lower()}": x for key, x in recorded[setting].items()}
    found = figures(shards, "boxes", rows, ROW_KEY, tmp_path)
    assert all(0 < found.pop(name) < 1 for name in OWN)
    assert found == expected


def test_a_long_tail_annotated_in_full_is_scored_by_both_rules(tmp_path: Path) -> None:
    """Class 2 is found where nobody looked for it: COCO counts that, LVIS does not."""
    classes = [{"id": 1, "name": "a", "frequency": "f"}, {"id": 2, "name": "b", "frequency": "r"}]
    size = {"width": 50, "height": 50}
    one, other = ({"box": box, "category": c} for box, c in (([0, 0, 9, 9], 1), ([9, 9, 30, 30], 2)))
    records = [size | {"image_id": "p", "boxes": [one, other]}, size | {"image_id": "q", "boxes": [one]}]
    found = [
        ("p", 1, [0, 0, 9, 9], 0.9),
        ("q", 1, [0, 0, 9, 9], 0.8),
        ("p", 2, [9, 9, 21, 21], 0.5),
        ("q", 2, [0, 0, 9, 9], 0.7),
    ]
    rows = [
        {"image_id": i, "category_id": c, "bbox": b, "score": s, "place": n} for n, (i, c, b, s) in enumerate(found)
    ]
    result = figures(stored(records, tmp_path / "shards", classes), "boxes", rows, ROW_KEY, tmp_path)
    assert result["ap"] == pytest.approx(0.75)
    assert [result[k] for k in ("lvis_ap", "lvis_apr", "fixed_ap")] == pytest.approx([1.0] * 3)
    assert result["lvis_apc"] == -1


def test_phrases_by_both_protocols(entities: tuple, tmp_path: Path) -> None:
    phrases, rows, recorded = entities
    record: Record = {"image_id": str(phrases[0].image_id), "width": 600, "height": 600, "boxes": [], "captions": []}
    for number in range(5):
        own = []
        for phrase in (p for p in phrases if p.caption == number):
            places = range(len(record["boxes"]), len(record["boxes"]) + len(phrase.boxes))
            record["boxes"] += [{"box": box} for box in phrase.boxes.tolist()]
            own.append({"span": [[0, 1]], "boxes": list(places), "types": list(phrase.types)})
        record["captions"].append({"text": "caption"} | ({"phrases": own} if own else {}))
    shards = stored([record], tmp_path / "shards")
    rows = [row | {"image_id": str(row["image_id"])} for row in rows]
    result = figures(shards, "captions", rows, ("image_id", "caption", "phrase"), tmp_path)
    for name, protocol in (("grounding", "ANY"), ("merged", "MERGED")):
        for k, expected in recorded[protocol].items():
            assert result[f"{name}_upper_bound" if k == "-1" else f"{name}_r{k}"] == expected["all"]


def test_expressions_by_both_overlaps(shared: Path, tmp_path: Path) -> None:
    recorded = json.loads((shared / "real/refer/iou_vs_giou_on_coco_boxes.json").read_text())
    corners = np.array([row[:2] for row in recorded["rows"]])
    corners[..., 2:] += corners[..., :2]
    size = {"width": 700, "height": 700}
    records = [
        size | {"image_id": f"p{n}", "boxes": [{"box": pair[0]}], "expressions": [{"text": "it", "box": 0, "id": n}]}
        for n, pair in enumerate(corners.tolist())
    ]
    rows = [{"expression_id": n, "boxes": [pair[1]]} for n, pair in enumerate(corners.tolist())]
    result = figures(stored(records, tmp_path / "shards"), "expressions", rows, ("expression_id",), tmp_path)
    assert result["referring_p1"] == recorded["acc_iou_0.5"]
    assert result["referring_giou_p1"] == recorded["acc_giou_0.5"]
