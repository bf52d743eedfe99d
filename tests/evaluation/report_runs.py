"""Runs as a report reads them, made without a model: sets of the shapes world and predictions drawn at random."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fiber.data.convert.writer import write_dataset
from fiber.data.shapes.world import WORLDS, categories, generate
from fiber.data.shards import ShardSet
from fiber.evaluation import region_scores

NASTY = '<img src=x onerror="document.title=1">'  # a class name and a caption that would run as HTML
ABOUT = {"split": "test", "provenance": "drawn", "licence": "none"}


def shapes_set(folder: Path, count: int = 40) -> ShardSet:
    """Scenes of the easy world; the name of the first class is NASTY."""
    world = WORLDS["easy"]
    named = [entry | ({"name": NASTY} if n == 0 else {}) for n, entry in enumerate(categories(world))]
    samples = (replace(sample, key=f"{n:04d}") for n, sample in enumerate(generate(world, "test", count, seed=3)))
    write_dataset(samples, folder, name="scenes", categories=named, **ABOUT)
    return ShardSet(folder)


def guesses(shards: ShardSet, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of detections, best first: objects found well, badly, as another class, or not; and boxes of nothing."""
    rng = np.random.default_rng(seed)
    ids = [category["id"] for category in shards.categories]
    rows = []
    for i in range(len(shards)):
        record, found = shards.record(i), []
        for box in record["boxes"]:
            x0, y0, x1, y1 = box["box"]
            shift = rng.choice([0.5, 2.0, 7.0]) * rng.standard_normal(2)
            for category in (box["category"], *rng.choice(ids, 2)):
                if rng.random() < 0.7:
                    found.append((int(category), [x0 + shift[0], y0 + shift[1], x1 - x0, y1 - y0], rng.random()))
        for _ in range(rng.integers(0, 3)):
            corner = rng.uniform(0, 40, 2)
            found.append((int(rng.choice(ids)), [*corner, *rng.uniform(8, 20, 2)], 0.5 * rng.random()))
        found.sort(key=lambda entry: -entry[2])
        for place, (category, box, score) in enumerate(found):
            row = {"image_id": record["image_id"], "place": place, "category_id": category}
            rows.append(row | {"bbox": [round(float(x), 2) for x in box], "score": round(float(score), 6)})
    return rows


def phrase_guesses(shards: ShardSet) -> list[dict[str, Any]]:
    """One row per phrase: its first true box, or another object's, or nothing, in turn."""
    rows: list[dict[str, Any]] = []
    for i in range(len(shards)):
        record = shards.record(i)
        for c, caption in enumerate(record["captions"]):
            for p, phrase in enumerate(caption["phrases"]):
                own = record["boxes"][phrase["boxes"][0]]["box"]
                other = record["boxes"][(phrase["boxes"][0] + 1) % len(record["boxes"])]["box"]
                boxes = ([own], [own], [other, own], [])[len(rows) % 4]
                rows.append({"image_id": record["image_id"], "caption": c, "phrase": p, "boxes": boxes})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a merged file of predictions has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def manifest(run: Path, sets: list[tuple[ShardSet, str, str, dict[str, float]]], best: int | None = None) -> None:
    """The files that a run leaves beside its predictions. sets: shards, field, folder in predictions/, figures."""
    entries = [
        {"name": s.name, "field": field, "folder": folder, "figures": figures, "path": str(s.path)}
        | {"fingerprint": s.fingerprint, "images": len(s)}
        for s, field, folder, figures in sets
    ]
    figures = {key: value for *_, found in sets for key, value in found.items()}
    summary = {"steps": 100, "eval": figures} | ({"best": {"figure": "ap", "step": best}} if best else {})
    (run / "predictions").mkdir(parents=True, exist_ok=True)
    (run / "predictions/evaluated.json").write_text(json.dumps({"step": 100, "sets": entries}))
    (run / "summary.json").write_text(json.dumps(summary))
    config = "task: pretrain\noptim: {warmup: 0.1}\ntrain: {steps: 100}\n"
    (run / "config.yaml").write_text(config + "pretrain: {itc_only_steps: 30, random_negative_steps: 60}\n")
    lines = [{"step": step, "loss/total": 3 - step / 50, "eval/apm": -1.0} for step in range(9, 100, 10)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 10')


def detection_run(folder: Path) -> tuple[Path, ShardSet, dict[str, float]]:
    """A run with detections and phrases of one set -> its directory, the set, the figures of the detections."""
    shards, run = shapes_set(folder / "scenes"), folder / "run"
    rows = run / "predictions" / "scenes"
    found = region_scores.score(shards, "boxes", write_rows(rows / "scenes_boxes.jsonl", guesses(shards)))
    phrases = write_rows(rows / "scenes_captions.jsonl", phrase_guesses(shards))
    named = region_scores.score(shards, "captions", phrases)
    manifest(run, [(shards, "boxes", "scenes", found), (shards, "captions", "scenes", named)])
    return run, shards, found


def data_of(report: Path) -> dict[str, Any]:
    """What a report shows."""
    text = (report / "data.js").read_text()
    return json.loads(text.removeprefix("const REPORT = ").removesuffix(";\n"))
