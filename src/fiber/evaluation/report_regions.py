"""The parts of a report at region level: detection, phrases, referring expressions."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from fiber.data.records import Record
from fiber.data.shards import ShardSet
from fiber.evaluation.coco_files import write_coco_files
from fiber.evaluation.metrics import grounding_recall as grounding
from fiber.evaluation.metrics.coco_ap import coco_ground_truth, coco_scorer, sorted_ids
from fiber.evaluation.metrics.matching import MISTAKES, NEAR, ImageObjects, best_threshold, match
from fiber.evaluation.predictions import read_predictions
from fiber.evaluation.region_scores import expression_id, images_of
from fiber.evaluation.report_parts import Item, Part, confusion_matrix
from fiber.fine.postprocess import DETECTION

SIZES = ("small (below 32 x 32 px)", "medium", "large (from 96 x 96 px)")
NOTHING, MISSED = "(nothing there)", "(missed)"


def boxes_part(shards: ShardSet, path: Path) -> Part:
    """Detection of classes. Writes coco_results.json and ground_truth.json beside the predictions, too."""
    part = Part("detection", "missed objects, and detections that are confused, badly placed or of nothing")
    numbers = [i for i, count in enumerate(shards.counts("boxes")) if count]
    if not numbers:
        part.notes.append("The set has no boxes: it is only predicted.")
        return part
    records = [shards.record(i) for i in numbers]
    truth = coco_ground_truth(records, shards.categories)
    files = {record["image_id"]: shards.place(i)[1] for i, record in zip(numbers, records, strict=True)}
    write_coco_files(truth, read_predictions(path), path.parent, DETECTION.keep, files)
    scorer = coco_scorer(truth, read_predictions(path), per_image=DETECTION.keep)
    names = {category["id"]: str(category["name"]) for category in shards.categories}
    calibrated = best_threshold(images_of(truth, read_predictions(path)))
    threshold = calibrated[0] if calibrated else 0.0
    counts: dict[str, Counter] = defaultdict(Counter)
    pairs: Counter[tuple[str, str]] = Counter()

    for number, record, (found, scores, own) in zip(
        numbers, records, images_of(truth, read_predictions(path)), strict=True
    ):
        kept = int((scores >= threshold).sum())
        found = ImageObjects(found.boxes[:kept], found.classes[:kept])
        part.items.append(_detected(number, record, found, scores[:kept], own, names, counts, pairs))
    ids = [names[category] for category in sorted_ids(truth, "categories")]
    part.tables = [_ap_by_class(scorer, ids, counts), _ap_by_size(scorer)]
    part.charts = [_precision_recall(scorer, ids)]
    part.matrix = confusion_matrix(pairs, (NOTHING, MISSED))
    part.notes = [
        f"Shown are detections of a score of {threshold:.3f} or more, one per place: there F1 at IoU 0.5 is greatest"
        + (f" ({calibrated[1]:.3f})." if calibrated else "."),
        "AP by class and by size are those of COCO's rules, from all detections.",
        f"For other tools: coco_results.json and ground_truth.json in predictions/ ({len(records)} images).",
    ]
    return part


def _detected(
    number: int,
    record: Record,
    found: ImageObjects,
    scores: np.ndarray,
    own: ImageObjects,
    names: Mapping[Any, str],
    counts: Mapping[str, Counter],
    pairs: Counter[tuple[str, str]],
) -> Item:
    """One image; adds to the counts per class and to the confusions."""
    matches = match(found, own)
    boxes = []
    for box, category, state in zip(own.boxes.tolist(), own.classes, matches.true, strict=True):
        boxes.append((box, "true", state, names[category], -1.0))
        counts[names[category]]["objects"] += state != "crowd"
        counts[names[category]][state] += 1
        if state in ("missed", "low"):
            pairs[names[category], MISSED] += 1
    for box, category, state, partner, score in zip(
        found.boxes.tolist(), found.classes, matches.found, matches.partner, scores.tolist(), strict=True
    ):
        label = names[category] + (f", is {names[own.classes[partner]]}" if state == "confused" else "")
        boxes.append((box, "found", state, label, score))
        counts[names[category]]["false"] += state == "false"
        if state in ("hit", "confused"):
            pairs[names[own.classes[partner]], names[category]] += 1
        elif state in ("false", "low"):
            pairs[NOTHING, names[category]] += 1
    tags = Counter(state for state in matches.found if state in MISTAKES)
    tags["missed"] = matches.true.count("missed")
    classes = sorted({names[category] for category in [*found.classes, *own.classes]})
    size = (record["width"], record["height"])
    return Item(number, matches.mistakes, +tags, classes, (), boxes, size, scores.max(initial=-1.0).item())


def _ap_by_class(scorer: COCOeval, names: list[str], counts: Mapping[str, Counter]) -> dict[str, Any]:
    precision = scorer.eval["precision"][:, :, :, 0, 2]
    rows: list[list[Any]] = []
    for k, name in enumerate(names):
        own, fate = precision[:, :, k], counts[name]
        ap, ap50 = (float(x.mean()) if (x > -1).all() else None for x in (own, own[0]))
        rows.append([name, ap, ap50, fate["objects"], *(fate[state] for state in ("hit", *MISTAKES))])
    rows.sort(key=lambda row: (row[1] is None, row[1]))
    columns = ["class", "AP", "AP50", "objects", "hit", *MISTAKES]
    return {"title": "By class, worst first", "columns": columns, "rows": rows}


def _ap_by_size(scorer: COCOeval) -> dict[str, Any]:
    rows = []
    for area, name in enumerate(("all", *SIZES)):
        precision, recall = scorer.eval["precision"][:, :, :, area, 2], scorer.eval["recall"][:, :, area, 2]
        if (precision > -1).any():
            ap, ap50 = (float(x[x > -1].mean()) for x in (precision, precision[0]))
            rows.append([name, ap, ap50, float(recall[recall > -1].mean())])
    return {"title": "By size of the object", "columns": ["size", "AP", "AP50", "AR"], "rows": rows}


def _precision_recall(scorer: COCOeval, names: list[str]) -> dict[str, Any]:
    """Over all classes at three IoUs, and of each class at IoU 0.5, every fourth of COCO's 101 recalls."""
    precision, recalls = scorer.eval["precision"][:, ::4, :, 0, 2], np.linspace(0, 1, 101)[::4].tolist()
    there = [k for k in range(len(names)) if precision[0, 0, k] > -1]

    def points(values: np.ndarray) -> list[list[float]]:
        return [[recall, round(float(value), 4)] for recall, value in zip(recalls, values, strict=True)]

    series = [{"name": f"all, IoU {iou}", "points": points(precision[t][:, there].mean(1))}
              for t, iou in ((0, 0.5), (5, 0.75), (8, 0.9))] if there else []  # fmt: skip
    choice = [{"name": names[k], "points": points(precision[0][:, k])} for k in there]
    title = "Precision by recall (a class is at IoU 0.5)"
    return {"title": title, "x": "recall", "y": "precision", "series": series, "choice": choice, "range": [0, 1]}


@dataclass(frozen=True)
class AskedPhrase:
    """A phrase of a text that was asked of an image: its true boxes (G,4), the found ones, best first, its types."""

    text: str
    words: str
    true: np.ndarray
    found: list[list[float]]
    types: tuple[str, ...] = ()


def phrases_part(shards: ShardSet, path: Path) -> Part:
    """Phrases of captions: the best box of each."""
    numbers = {shards.record(i)["image_id"]: i for i, count in enumerate(shards.counts("captions")) if count}
    best = {(row["image_id"], row["caption"], row["phrase"]): row["boxes"] for row in read_predictions(path)}
    part, items, phrases = Part("phrase grounding", "phrases whose best box misses"), [], []
    for number in numbers.values():
        record = shards.record(number)
        asked = []
        for phrase in grounding.phrases_of(record):
            caption = record["captions"][phrase.caption]
            words = " ".join(caption["text"][a:b] for a, b in caption["phrases"][phrase.phrase]["span"])
            asked.append(AskedPhrase(caption["text"], words, phrase.boxes, best.get(phrase.key, []), phrase.types))
            phrases.append(phrase)
        if asked:
            items.append(_asked(number, record, asked))
    part.items = items
    found = grounding.phrase_recall(phrases, read_predictions(path))
    rows = [["all", len(phrases), *(found[f"r{k}"] for k in grounding.TOP_K)]]
    for kind, recall in sorted(found.get("by_type", {}).items(), key=lambda entry: entry[1]["r1"]):
        count = sum(kind in phrase.types for phrase in phrases)
        rows.append([kind, count, *(recall[f"r{k}"] for k in grounding.TOP_K)])
    columns = ["type of phrase", "phrases", "R@1", "R@5", "R@10"]
    part.tables = [{"title": "Recall by type of phrase", "columns": columns, "rows": rows}, _by_size(items)]
    part.notes = ["A phrase is found where its best box meets one of its true boxes at IoU 0.5."]
    return part


def expressions_part(shards: ShardSet, path: Path) -> Part:
    """Referring expressions: the best box of each."""
    best = {row["expression_id"]: row["boxes"] for row in read_predictions(path)}
    part, items, chance = Part("referring expressions", "expressions whose best box misses"), [], []
    for number in np.flatnonzero(shards.counts("expressions")).tolist():
        record = shards.record(number)
        asked = []
        for n, entry in enumerate(record["expressions"]):
            true = np.array([record["boxes"][entry["box"]]["box"]], dtype=np.float64)
            asked.append(AskedPhrase(entry["text"], entry["text"], true, best.get(expression_id(record, n), [])))
            chance.append(1 / len(record["boxes"]))
        items.append(_asked(number, record, asked))
    part.items, part.tables = items, [_by_size(items)]
    if chance:
        part.notes = [f"One of the image's boxes, drawn at random, is right for {np.mean(chance):.3f} of them."]
    return part


def _asked(number: int, record: Record, asked: list[AskedPhrase]) -> Item:
    """An image and what was asked of it; below it each text and the phrases of it that were not found."""
    tags: Counter[str] = Counter()
    lines: list[tuple[str, bool | None]] = []
    boxes: list[tuple[list[float], str, str, str, float]] = []
    every = np.array([box["box"] for box in record["boxes"]], dtype=np.float64).reshape(-1, 4)
    for one in asked:
        state, overlap = "missed", 0.0
        if one.found:
            best = np.array(one.found[:1], dtype=np.float64)
            overlap = float(grounding.iou(best, one.true).max())
            elsewhere = grounding.iou(best, every).max(initial=0.0) >= grounding.HIT
            near = "low" if overlap >= NEAR else "false"
            state = "hit" if overlap >= grounding.HIT else "confused" if elsewhere else near
            boxes.append((one.found[0], "found", state, one.words, -1.0))
        boxes += [(box, "true", "hit" if state == "hit" else "missed", one.words, -1.0) for box in one.true.tolist()]
        if (one.text, None) not in lines and one.text != one.words:
            lines.append((one.text, None))
        if state != "hit" or one.text == one.words:
            lines.append((f"{state}: {one.words} (IoU {overlap:.2f})", state == "hit"))
        tags[state] += state != "hit"
    kinds = sorted({kind for one in asked for kind in one.types})
    unique = list({(tuple(box), *rest): (box, *rest) for box, *rest in boxes}.values())
    return Item(number, tags.total(), +tags, kinds, lines, unique, (record["width"], record["height"]))


def _by_size(items: list[Item]) -> dict[str, Any]:
    """Share of phrases that are found, by the area of each of their true boxes."""
    found: dict[str, list[bool]] = {name: [] for name in SIZES}
    for item in items:
        for box, kind, state, *_ in item.boxes:
            if kind == "true":
                area = (box[2] - box[0]) * (box[3] - box[1])
                found[list(found)[(area >= 32**2) + (area >= 96**2)]].append(state == "hit")
    rows = [[name, len(hits), float(np.mean(hits))] for name, hits in found.items() if hits]
    return {"title": "Recall by size of the true box", "columns": ["size", "boxes", "found"], "rows": rows}


def region_part(shards: ShardSet, field: str, folder: Path) -> Part:
    """The part of a set and field from the rows in `folder`."""
    build = {"boxes": boxes_part, "captions": phrases_part, "expressions": expressions_part}[field]
    return build(shards, folder / f"{shards.name}_{field}.jsonl")
