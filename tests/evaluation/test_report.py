"""The report of a run at region level, against pycocotools and against a count of mistakes done in another way."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from report_runs import NASTY, data_of, detection_run, guesses, manifest
from torchvision.ops import box_iou, nms

import fiber
from fiber.cli.main import main
from fiber.config.stage2 import Stage2Config
from fiber.data.shards import ShardSet
from fiber.evaluation import report as report_module
from fiber.evaluation.report import ReportError, headline, make_report, report_of_run
from fiber.evaluation.report_curves import curves, marks
from fiber.evaluation.report_texts import retrieval_part
from fiber.weights.export import read_export, write_run_export
from tiny_exports import fine_export


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardSet, dict[str, float]]:
    run, shards, figures = detection_run(tmp_path_factory.mktemp("report"))
    assert main(["report", str(run)]) == 0
    return run, shards, figures


def mistakes_of(record: dict, rows: list[dict], threshold: float) -> tuple[int, int, int]:
    """Mistakes of an image, hits and detections, counted with torchvision."""
    rows = [row for row in rows if row["image_id"] == record["image_id"]]
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)]).double().view(-1, 4)
    scores = torch.tensor([row["score"] for row in rows]).double()
    kept = [i for i in nms(boxes, scores, 0.6).tolist() if scores[i] >= threshold]
    overlap = box_iou(boxes, torch.tensor([box["box"] for box in record["boxes"]]).double())
    left, waiting, hits, wrong = set(range(len(record["boxes"]))), kept, 0, 0
    for rule, least in (("hit", 0.5), ("confused", 0.5), ("low", 0.1)):
        after = []
        for d in waiting:
            fits = {
                g: overlap[d, g].item()
                for g in left
                if overlap[d, g] >= least
                and (rows[d]["category_id"] == record["boxes"][g]["category"]) == (rule != "confused")
            }
            if not fits:
                after.append(d)
                continue
            left.remove(max(fits, key=lambda g: fits[g]))
            hits, wrong = hits + (rule == "hit"), wrong + (rule != "hit")
        waiting = after
    return wrong + len(waiting) + len(left), hits, len(kept)


def test_the_five_worst_images_are_the_worst_of_another_count(made: tuple) -> None:
    run, shards, figures = made
    part = data_of(run / "report")["parts"][0]
    rows, records = guesses(shards), [shards.record(i) for i in range(len(shards))]
    threshold = figures["detect_threshold"]
    counts = [mistakes_of(record, rows, threshold)[0] for record in records]
    order = sorted(range(len(records)), key=lambda i: -counts[i])
    expected = [(records[i]["image_id"], counts[i]) for i in order]
    assert counts[order[0]] > counts[order[5]] > 0  # the five worst are no matter of chance alone
    assert [(item["id"], item["error"]) for item in part["items"]][:5] == expected[:5]
    assert sorted((item["id"], item["error"]) for item in part["items"]) == sorted(expected)
    assert sum(count for _, count in part["mistakes"]) == sum(counts)


def test_the_threshold_has_the_greatest_f1(made: tuple) -> None:
    _, shards, figures = made
    rows, records = guesses(shards), [shards.record(i) for i in range(len(shards))]

    def f1(threshold: float) -> float:
        found = [mistakes_of(record, rows, threshold)[1:] for record in records]
        objects = sum(len(record["boxes"]) for record in records)
        return 2 * sum(hits for hits, _ in found) / (sum(count for _, count in found) + objects)

    assert f1(figures["detect_threshold"]) == pytest.approx(figures["detect_f1"])
    others = sorted(row["score"] for row in rows)[::12]
    assert len(others) > 15
    assert max(f1(other) for other in others) <= figures["detect_f1"] + 1e-12


def test_the_export_has_the_threshold_of_the_first_set(tmp_path: Path) -> None:
    export = read_export(fine_export(tmp_path / "fine"))
    config = Stage2Config(output=str(tmp_path / "run"), tokenizer="words", seed=0)
    write_run_export(config, export, {"a/detect_threshold": 0.41, "b/detect_threshold": 0.2, "ap": 0.5})
    assert fiber.load(tmp_path / "run").threshold == 0.41
    assert fiber.load(tmp_path / "fine").threshold == 0.3


def test_pycocotools_reads_the_files_and_gives_the_same_ap(made: tuple) -> None:
    run, shards, figures = made
    folder = run / "predictions" / "scenes"
    truth = COCO(str(folder / "ground_truth.json"))
    scorer = COCOeval(truth, truth.loadRes(str(folder / "coco_results.json")), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    assert 0.05 < figures["ap"] < 0.95
    assert [figures[key] for key in ("ap", "ap50", "ap75")] == pytest.approx(scorer.stats[:3].tolist(), abs=1e-6)
    images = truth.loadImgs(truth.getImgIds())
    assert {image["fiber_id"] for image in images} == {shards.record(i)["image_id"] for i in range(len(shards))}
    assert all(isinstance(image["id"], int) and image["file_name"] for image in images)
    precision = scorer.eval["precision"][:, :, :, 0, 2]
    table = {row[0]: row[1] for row in data_of(run / "report")["parts"][0]["tables"][0]["rows"]}
    for k, category in enumerate(sorted(shards.categories, key=lambda c: c["id"])):
        own = precision[:, :, k]
        assert table[category["name"]] == (None if (own == -1).all() else pytest.approx(own.mean()))


def test_phrases_are_counted_by_their_best_box(made: tuple) -> None:
    """Of four phrases two are found (`phrase_guesses`); another object in their place is a confusion, none a miss."""
    run, _, _ = made
    data = data_of(run / "report")
    part = data["parts"][1]
    phrases = part["tables"][0]["rows"][0][1]
    wrong = dict(part["mistakes"])
    assert wrong["missed"] == phrases // 4
    assert sum(wrong.values()) == round(phrases * (1 - dict(data["figures"])["grounding_r1"]))
    assert part["tables"][0]["rows"][0][2] == dict(data["figures"])["grounding_r1"]
    assert any(row[:1] == ["grounding_r1"] and row[3] == "class_agnostic_r1" for row in data["headline"])


def test_what_comes_from_outside_is_data_alone(made: tuple) -> None:
    run, _, _ = made
    report = run / "report"
    assert NASTY in [row[0] for row in data_of(report)["parts"][0]["tables"][0]["rows"]]
    assert "<" not in (report / "data.js").read_text()
    assert "innerHTML" not in (report / "report.js").read_text()
    assert str(run) not in (report / "data.js").read_text()


def test_a_thousand_images_stay_below_ten_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget is kept by noise, which no codec makes small; an image that cannot be decoded costs nothing."""

    class Noise:
        path = "noise"

        def read(self, number: int) -> object:
            stream = tmp_path / "noise.png"
            if not stream.exists():
                Image.effect_noise((640, 480), 90).convert("RGB").save(stream)
            data = b"no image" if number == 3 else stream.read_bytes()
            return type("Sample", (), {"images": [("png", data)]})()

    thumbnails = report_module.Thumbnails(tmp_path, 12, budget=12 * 6000)
    paths = [thumbnails.of(Noise(), number) for number in range(12)]  # type: ignore[arg-type]
    assert paths[3] == [""]
    assert sum((tmp_path / path).stat().st_size for (path,) in paths if path) <= 12 * 6000
    assert thumbnails.of(Noise(), 0) == paths[0]  # type: ignore[arg-type]


def test_only_the_worst_are_shown_where_there_are_more(made: tuple, tmp_path: Path) -> None:
    run, _, _ = made
    data = data_of(make_report(run, tmp_path / "few", images=10).parent)
    every = data_of(run / "report")["parts"][0]["items"]
    assert [item["id"] for item in data["parts"][0]["items"]] == [item["id"] for item in every[:5]]
    assert len(list((tmp_path / "few" / "thumbs").iterdir())) <= 10


def test_a_run_is_never_lost_for_its_report(
    made: tuple, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made[0], run)
    monkeypatch.setattr(report_module, "curves", lambda path: 1 / 0)
    report_of_run(run)
    assert capsys.readouterr().err.startswith("no report was made (ZeroDivisionError")


def test_faults_are_one_line(made: tuple, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, shards, figures = made
    assert main(["report", str(tmp_path)]) == 1
    assert "is no run directory" in capsys.readouterr().err
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("years of work")
    with pytest.raises(ReportError, match="holds something else than a report"):
        make_report(run, tmp_path / "own")
    moved = tmp_path / "moved"
    manifest(moved, [(shards, "boxes", "scenes", figures)])
    text = (moved / "predictions/evaluated.json").read_text().replace(str(shards.path), "/nowhere")
    (moved / "predictions/evaluated.json").write_text(text)
    with pytest.raises(ReportError, match=r"set scenes of the evaluation: /nowhere: no such folder"):
        make_report(moved)
    assert not (moved / "report").exists()
    for name, text, message in (
        ("metrics.jsonl", '{"step": 0}\n5\n', r"metrics\.jsonl: the line 5 is none of a run's"),
        ("metrics.jsonl", '{"loss/itc": 1.0}\n', r"metrics\.jsonl: the line"),
        ("summary.json", '{"best": 5}', r"summary\.json is damaged"),
        ("predictions/evaluated.json", '{"sets": []}', r"evaluated\.json is damaged"),
        ("predictions/evaluated.json", '{"step": 5, "sets": [3]}', r"evaluated\.json is damaged"),
    ):
        broken = tmp_path / "broken"
        (broken / "predictions").mkdir(parents=True)
        (broken / "metrics.jsonl").write_text("")
        (broken / name).write_text(text)
        with pytest.raises(ReportError, match=message):
            make_report(broken)
        shutil.rmtree(broken)


def test_figures_of_another_step_than_the_images_are_said(made: tuple, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made[0] / "predictions", run / "predictions")
    manifest(run, [(made[1], "boxes", "scenes", made[2])], best=40)
    data = data_of(make_report(run).parent)
    assert "headline is that of step 40" in data["warning"]


def test_curves_are_thinned_and_phases_marked(tmp_path: Path) -> None:
    lines = [{"step": s, "loss/itc": float(s), "loss/bad": float("nan"), "note": "x"} for s in range(1000)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (chart,) = curves(tmp_path / "metrics.jsonl")
    (series,) = chart["series"]
    assert (chart["title"], series["name"]) == ("Losses", "itc")
    assert len(series["points"]) <= 300
    assert series["points"][-1] == [999, 999.0]
    pretrain = {"itc_only_steps": 30, "random_negative_steps": 60}
    config = {"task": "pretrain", "optim": {"warmup": 0.1}, "train": {"steps": 100}, "pretrain": pretrain}
    assert [step for step, _ in marks(config)] == [10, 30, 60]
    assert marks(config | {"task": "vqa"}) == [[10, "warm-up ends"]]


def test_headline_figures_stand_beside_their_baselines() -> None:
    figures = {"a/accuracy": 0.7, "a/majority_accuracy": 0.4, "b/accuracy": 0.6, "ap": 0.3, "merged_r1": 0.2}
    rows = [["a/accuracy", 0.7, 0.4, "majority_accuracy"], ["b/accuracy", 0.6, None, ""], ["ap", 0.3, None, ""]]
    assert headline(figures) == rows


def test_a_text_that_finds_another_image_shows_that_image_beside_its_own(tmp_path: Path) -> None:
    """Two images, the second of which is found for the text of the first."""

    class Two:
        def counts(self, field: str) -> np.ndarray:
            return np.array([1, 1])

        def record(self, number: int) -> dict:
            return {"image_id": f"i{number}"}

    hits = [{"image_id": "i1", "score": 0.75}, {"image_id": "i0", "score": 0.5}]
    by_text = [
        {"text": "a dog", "image_id": "i0", "rank": 1, "images": hits},
        {"text": "a cat", "image_id": "i1", "rank": 0, "images": hits},
    ]
    texts = [{"text": "a dog", "score": 0.5, "own": True}]
    by_image = [
        {"image_id": "i0", "rank": 0, "texts": texts},
        {"image_id": "i1", "rank": 1, "texts": [texts[0] | {"own": False}]},
    ]
    (tmp_path / "text_to_image.json").write_text(json.dumps(by_text))
    (tmp_path / "image_to_text.json").write_text(json.dumps(by_image))
    first, second = retrieval_part(Two(), "captions", tmp_path).items  # type: ignore[arg-type]
    assert (first.sample, first.other, first.error, dict(first.tags)) == (0, 1, 1.0, {"image not first": 1})
    assert first.lines[0] == ("by text: rank 2 for “a dog”; first is the image beside it, i1 (0.75)", False)
    assert (second.sample, second.other, second.error, dict(second.tags)) == (1, None, 1.0, {"text not first": 1})
    assert second.lines[:2] == [
        ("by text: rank 1 for “a cat”", True),
        ("by image: rank 2 for a text of its own", False),
    ]
