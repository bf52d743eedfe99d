"""The parts of a report at image level: questions, statements, hypotheses, classes, captions, retrieval."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fiber.data.shards import ShardSet
from fiber.evaluation.metrics.caption_scores import cider_d, tokenize
from fiber.evaluation.metrics.vqa_accuracy import question_accuracy
from fiber.evaluation.predictions import read_predictions
from fiber.evaluation.report_parts import Part, ReportItem, confusion_matrix, histogram

RANKS = (1, 2, 5, 10, 50)  # edges of the histogram, 0 = best


def annotations(shards: ShardSet, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Sample number and annotation of every position."""
    for number in np.flatnonzero(shards.counts(field)).tolist():
        for entry in shards.record(number)[field]:
            yield number, entry


def questions_part(shards: ShardSet, field: str, folder: Path) -> Part:
    """Answers to questions, by the official accuracy, and by type of answer and of question."""
    part = Part("questions", "1 - accuracy of the answer")
    answers = {row["question_id"]: row["answer"] for row in read_predictions(folder / "vqa.jsonl")}
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    pairs: Counter[tuple[str, str]] = Counter()
    for number, question in annotations(shards, field):
        given, answer = question.get("raw_answers"), answers[question["id"]]
        lines: list[tuple[str, bool | None]] = [(f"Q: {question['question']}", None)]
        if not given:
            part.items.append(ReportItem(number, 0.0, {}, (), [*lines, (f"model: {answer}", None)]))
            continue
        score, usual = question_accuracy(answer, given), Counter(given).most_common(3)
        lines += [(f"model: {answer} ({score:.1f})", score >= 0.5)]
        lines += [("people: " + ", ".join(f"{word} ({n})" for word, n in usual), None)]
        kinds = [str(question[kind]) for kind in ("answer_type", "question_type") if kind in question]
        for kind in ("answer_type", "question_type"):
            if kind in question:
                groups[kind.replace("_", " "), str(question[kind])].append(score)
        pairs[usual[0][0], answer] += 1
        tag = "wrong" if score == 0 else "partly right" if score < 1 else ""
        part.items.append(ReportItem(number, 1 - score, {tag: 1} if tag else {}, kinds, lines))
    rows = [[kind, name, len(values), float(np.mean(values))] for (kind, name), values in groups.items()]
    part.tables = [
        {
            "title": "Accuracy by type, worst first",
            "columns": ["of", "type", "questions", "accuracy"],
            "rows": sorted(rows, key=lambda row: (row[0], row[3])),
        }
    ]
    part.matrix = confusion_matrix(pairs) if pairs else None
    return part


def labels_part(shards: ShardSet, field: str, folder: Path) -> Part:
    """Statements about two images (true or false) and hypotheses about one (entailed or not)."""
    by_id = field == "statements"
    rows = read_predictions(folder / ("nlvr2.jsonl" if by_id else "entailment.jsonl"))
    predicted = {row["id"] if by_id else n: str(row["label"]) for n, row in enumerate(rows)}
    part = Part("statements" if by_id else "hypotheses", "1 where the label is wrong")
    truth = ((number, entry["text"], entry.get("label")) for number, entry in annotations(shards, field))
    keys = [entry["id"] if by_id else n for n, (_, entry) in enumerate(annotations(shards, field))]
    answers = (
        (number, text, None if label is None else str(label), predicted[key])
        for key, (number, text, label) in zip(keys, truth, strict=True)
    )
    return _by_label(part, answers)


def classes_part(shards: ShardSet, field: str, folder: Path) -> Part:
    """Classification of images: the best class of the head, with its five best beside it."""
    rows = list(read_predictions(folder / "classification.jsonl"))
    part = Part("classification", "1 where the best class is wrong")
    numbers = [number for number, _ in annotations(shards, field)]
    rows.sort(key=lambda row: row["position"])
    answers = (
        (number, "head: " + ", ".join(row["head"]), row["class"], row["head"][0])
        for number, row in zip(numbers, rows, strict=True)
    )
    return _by_label(part, answers)


def _by_label(part: Part, answers: Iterator[tuple[int, str, str | None, str]]) -> Part:
    """Sample number, text, true label (None: unknown) and predicted label, one after the other."""
    pairs: Counter[tuple[str, str]] = Counter()
    for number, text, true, label in answers:
        lines = [(text, None), (f"model: {label}", None if true is None else label == true)]
        if true is not None:
            lines.append((f"truth: {true}", None))
            pairs[true, label] += 1
        wrong = true is not None and label != true
        part.items.append(ReportItem(number, float(wrong), {"wrong": 1} if wrong else {}, [true or label], lines))
    if pairs:
        totals = Counter({true: 0 for true, _ in pairs})
        for (true, _), count in pairs.items():
            totals[true] += count
        rows: list[list[Any]] = [[name, count, pairs[name, name] / count] for name, count in totals.items()]
        rows.sort(key=lambda row: row[2])
        columns = ["label", "count", "accuracy"]
        part.tables = [{"title": "Accuracy by label, worst first", "columns": columns, "rows": rows}]
        part.matrix = confusion_matrix(pairs)
    return part


def captions_part(shards: ShardSet, field: str, folder: Path) -> Part:
    """Generated captions: CIDEr-D of each image, counted over the set."""
    rows = sorted(read_predictions(folder / "captions.jsonl"), key=lambda row: row["position"])
    numbers = [i for i, count in enumerate(shards.counts(field)) if count or not shards.count(field)]
    part = Part("captions", "10 - CIDEr-D of the caption")
    scored = bool(rows) and all(row["references"] for row in rows)
    scores = np.full(len(rows), np.nan)
    if scored:
        references = [[tokenize(text) for text in row["references"]] for row in rows]
        scores = cider_d([tokenize(row["caption"]) for row in rows], references)
    for row, score in zip(rows, scores.tolist(), strict=True):
        said = f"model: {row['caption']}" + (f"  (CIDEr {score:.2f})" if scored else "")
        lines = [(said, None), *((f"people: {text}", None) for text in row["references"])]
        tags = {"below 0.5": 1} if scored and score < 0.5 else {}
        domain = [row["domain"]] if row["domain"] else []
        error = 10 - score if scored else 0.0
        part.items.append(ReportItem(numbers[row["position"]], error, tags, domain, lines))
    if scored:
        edges, names = (0.1, 0.5, 1.0, 2.0), ["below 0.1", "to 0.5", "to 1", "to 2", "2 and more"]
        part.charts = [histogram("Images by CIDEr-D of their caption", "CIDEr-D", scores.tolist(), edges, names)]
    return part


def retrieval_part(shards: ShardSet, field: str, folder: Path) -> Part:
    """Texts by image and images by text: the rank of what belongs together."""
    names = ("image_to_text", "text_to_image")
    by_image, by_text = (json.loads((folder / f"{name}.json").read_text()) for name in names)
    numbers = {shards.record(i)["image_id"]: i for i in np.flatnonzero(shards.counts(field)).tolist()}
    worst: dict[Any, dict[str, Any]] = {}
    for row in by_text:
        if row["rank"] > worst.get(row["image_id"], {"rank": -1})["rank"]:
            worst[row["image_id"]] = row
    part = Part("retrieval", "texts that stand before the image's own, plus images before it for its worst text")
    for row in by_image:
        asked = worst[row["image_id"]]
        rank, first = asked["rank"], asked["images"][0]
        error = rank + row["rank"]
        found = f"by text: rank {rank + 1} for “{asked['text']}”"
        if rank:
            found += f"; first is the image beside it, {first['image_id']} ({first['score']:.2f})"
        lines = [(found, rank == 0), (f"by image: rank {row['rank'] + 1} for a text of its own", row["rank"] == 0)]
        for n, hit in enumerate(row["texts"][:5], 1):
            lines.append((f"{n}. {hit['text']} ({hit['score']:.2f})", hit["own"]))
        wrong = {"text not first": row["rank"] > 0, "image not first": rank > 0}
        tags = {name: 1 for name, there in wrong.items() if there}
        other = numbers[first["image_id"]] if rank else None
        part.items.append(ReportItem(numbers[row["image_id"]], float(error), tags, (), lines, other=other))
    ranks = {"image to text": [r["rank"] for r in by_image], "text to image": [r["rank"] for r in by_text]}
    rows = []
    for way, ranked in ranks.items():
        recalls = [float(np.mean(np.array(ranked) < k)) for k in (1, 5, 10)]
        rows.append([way, len(ranked), *recalls, float(np.median(ranked)) + 1])
    columns = ["way", "queries", "R@1", "R@5", "R@10", "median rank"]
    part.tables = [{"title": "Recall, as ranked last", "columns": columns, "rows": rows}]
    bars = ["1", "2", "3-5", "6-10", "11-50", "later"]
    part.charts = [histogram(f"Rank, {way}", "rank", ranked, RANKS, bars) for way, ranked in ranks.items()]
    return part


# The rows that a folder of predictions has say what was evaluated.
KINDS: Mapping[str, Callable[[ShardSet, str, Path], Part]] = {
    "vqa.jsonl": questions_part,
    "nlvr2.jsonl": labels_part,
    "entailment.jsonl": labels_part,
    "classification.jsonl": classes_part,
    "captions.jsonl": captions_part,
    "image_to_text.json": retrieval_part,
}


def image_part(shards: ShardSet, field: str, folder: Path) -> Part | None:
    """The part of a set from the rows in `folder`; None where it has none that are known."""
    for name, build in KINDS.items():
        if (folder / name).is_file():
            return build(shards, field, folder)
    return None
