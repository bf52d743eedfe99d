"""Examples of a set at region level as data: the image alone (.jpg) and its boxes (.json), for dashboards in which
boxes can be switched on and off; the drawn figure of the same name is a .png."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from fiber.data.records import Record
from fiber.data.shards import ShardSet
from fiber.evaluation.predictions import Row, read_predictions
from fiber.evaluation.regions import caption_phrases, expressions
from fiber.images.codec import decode_pil

MOST = 30  # boxes of an image
QUALITY = 90  # of the JPEG


def example_samples(shards: ShardSet, field: str, count: int) -> list[int]:
    """Numbers of `count` samples that have annotations of `field`, evenly spaced over the set."""
    usable = np.flatnonzero(shards.counts(field))
    if not count or not len(usable):
        return []
    return usable[np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int)].tolist()


def write_example_regions(
    shards: ShardSet, field: str, predictions: Path, figures: Path, *, count: int, threshold: float = 0.3
) -> None:
    """FIGURES_NN.jpg and .json of `example_samples`, from the merged rows of `predictions`: {"text", "regions"}, see
    `dashboards.board.ExampleImage`. Found are, of "boxes", detections scored at least `threshold`; of texts the best
    box of each phrase of the image's first text."""
    samples = example_samples(shards, field, count)
    records = [shards.record(number) for number in samples]
    key = "expression_id" if field == "expressions" else "image_id"
    wanted = {identity["expression_id"] for r in records for identity, _, _ in expressions(r)}
    wanted |= {record["image_id"] for record in records}
    rows = defaultdict[Any, list[Row]](list)
    for row in read_predictions(predictions):
        if row[key] in wanted:
            rows[row[key]].append(row)
    names = {category["id"]: category["name"] for category in shards.categories}
    for place, (number, record) in enumerate(zip(samples, records, strict=True)):
        if field == "boxes":
            text, regions = (
                "",
                [*_true_objects(record, names), *_detections(rows[record["image_id"]], names, threshold)],
            )
        else:
            text, regions = _first_text(record, field, rows)
        target = figures.with_name(f"{figures.name}_{place:02d}")
        image = decode_pil(shards.read(number).images[0][1]).convert("RGB")
        encoded = BytesIO()
        image.save(encoded, "JPEG", quality=QUALITY)
        target.with_suffix(".jpg").write_bytes(encoded.getvalue())
        shown = {"text": text, "regions": regions}
        target.with_suffix(".json").write_text(json.dumps(shown, ensure_ascii=False))


def _true_objects(record: Record, names: dict[int, str]) -> Iterable[dict[str, Any]]:
    for box in record["boxes"][:MOST]:
        yield {"box": box["box"], "label": names[box["category"]], "kind": "true"}


def _detections(rows: list[Row], names: dict[int, str], threshold: float) -> Iterable[dict[str, Any]]:
    sure = sorted((row for row in rows if row["score"] >= threshold), key=lambda row: -row["score"])
    for row in sure[:MOST]:
        x, y, width, height = row["bbox"]
        box = [x, y, x + width, y + height]
        yield {"box": box, "label": names[row["category_id"]], "kind": "found", "score": row["score"]}


def _first_text(record: Record, field: str, rows: dict[Any, list[Row]]) -> tuple[str, list[dict[str, Any]]]:
    """The first text that was asked about, and per phrase its true boxes and the best found one."""
    targets = (caption_phrases if field == "captions" else expressions)(record)
    regions: list[dict[str, Any]] = []
    for place, (identity, text, spans) in enumerate(targets):
        if text != targets[0][1] or identity.get("caption") != targets[0][0].get("caption"):
            break
        label = " ".join(text[start:end] for start, end in spans)
        if field == "captions":
            phrase = record["captions"][identity["caption"]]["phrases"][identity["phrase"]]
            true = [record["boxes"][number]["box"] for number in phrase["boxes"]]
            own = rows[record["image_id"]]
        else:
            true, own = [record["expressions"][place]["box"]], rows[identity["expression_id"]]
        regions += [{"box": box, "label": label, "kind": "true"} for box in true]
        found = [row["boxes"][:1] for row in own if all(row[name] == value for name, value in identity.items())]
        regions += [{"box": box, "label": label, "kind": "found"} for boxes in found for box in boxes]
    return (targets[0][1] if targets else ""), regions
