"""The record: what one image's `KEY.json` in a shard says, and the checks that keep it honest.

A record is a plain dict; an optional field that would be empty is absent.

    image_id, width, height, source     required; the same image has the same image_id in every set built from it
    captions     [{"text", "phrases"?: [{"span": [[s, e], ...], "boxes": [index, ...], "chain"?}]}]
    boxes        [{"box": [x0, y0, x1, y1], "category"?, "crowd"?, "area"?, "id"?}]
    expressions  [{"text", "box": index, "span"?: [[s, e], ...], "id"?}]
    questions    [{"id", "question", "answers"?: [{"answer", "score"}], "raw_answers"?,
                  "answer_type"?, "question_type"?}]
    hypotheses   [{"text", "label", "id"?}]
    statements   [{"text", "label"?: bool, "id"}]     on pairs: the record has "images": [{"width", "height"}] * 2
    negative_categories, not_exhaustive_categories         [category id] (LVIS)

Boxes are float absolute pixels of the stored image. Spans are [start, end) characters of the text they stand beside.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fiber.errors import SampleFault

Record = dict[str, Any]

FIELDS = ("captions", "expressions", "questions", "hypotheses", "statements", "boxes")
"""Annotation fields: what a data source can walk over, one annotation (or, for boxes, one image) a sample."""

TEXT_OF = dict.fromkeys(FIELDS[:-1], "text") | {"questions": "question"}
"""Which key of an annotation holds its text."""

LABELS = ("contradiction", "neutral", "entailment")
"""Hypothesis labels in class order (METER, FIBER: 0, 1, 2)."""

EXTENSIONS = ("jpg", "png", "webp")

BY_RULE = frozenset({"no_known_answer"})
"""Reasons of `SampleFault` that a task's rule has, not damage: counted and replaced alike, but never too many."""


class RecordError(SampleFault):
    """A record breaks the schema; the message names the field and the index."""


@dataclass(frozen=True)
class SetFacts:
    """What a record does not say about its set: the folder, class names in the order of their ids, and the position
    of each id among them."""

    path: str = ""
    names: tuple[str, ...] = ()
    index: Mapping[int, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, path: str, categories: Sequence[Mapping[str, Any]]) -> SetFacts:
        """categories: as dataset.json lists them, {"id", "name"}."""
        ordered = sorted(categories, key=lambda category: category["id"])  # as evaluation asks for them
        index = {category["id"]: position for position, category in enumerate(ordered)}
        return cls(path, tuple(category["name"] for category in ordered), index)


def check_categories(categories: Sequence[Any]) -> None:
    """Raises ValueError unless each is {"id", "name"}, ids differ and are all numbers or all texts, and no name is
    blank."""
    for category in categories:
        if not isinstance(category, Mapping) or not {"id", "name"} <= category.keys():
            raise ValueError(f"category {category!r:.200} must have an id and a name")
        if not isinstance(category["id"], (int, str)) or not isinstance(category["name"], str):
            raise ValueError(f"category {category!r:.200}: an id is a whole number (or a text), a name a text")
        if not category["name"].strip():
            raise ValueError(f"the name of category {category['id']!r} is blank: give it one")
    ids = [category["id"] for category in categories]
    if len({type(i) for i in ids}) > 1:
        raise ValueError(f"category ids are texts and numbers: {ids[:5]}; write all in one way")
    if repeated := {i for i in ids if ids.count(i) > 1}:
        raise ValueError(f"category ids repeat: {sorted(repeated)[:5]}")


@dataclass
class Sample:
    """What a shard holds under one key.

    key: unique in the set, without dots. images: one (extension, encoded bytes) per image, two for pairs. facts: of
    the set that it comes from.
    """

    key: str
    images: list[tuple[str, bytes]]
    record: Record
    facts: SetFacts = dataclasses.field(default=SetFacts(), compare=False)


def clean_text(text: str) -> str:
    """Single blanks for every run of white space (any Unicode kind), none at the ends."""
    return " ".join(text.split())


def image_hash(image_id: str) -> int:
    """A stable non-negative 63-bit hash of a record's image_id (fits an int64 tensor)."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "big") >> 1


def count(record: Record, field: str) -> int:
    """How many annotations of `field` the record offers.

    "boxes" counts 1 when the image can serve as a detection sample: the field is there (empty = looked at, nothing
    found) and every box has a category.
    """
    annotations = record.get(field)
    if annotations is None:
        return 0
    if field == "boxes":
        return int(all("category" in box for box in annotations))
    return len(annotations)


def annotation(record: Record, field: str, index: int) -> dict[str, Any]:
    """`record[field][index]`. Raises RecordError("missing_field") where the record has no such annotation."""
    annotations = record.get(field)
    if not isinstance(annotations, list) or not 0 <= index < len(annotations):
        raise RecordError("missing_field", f"the record has no {field}[{index}]")
    return annotations[index]


def annotation_text(record: Record, field: str, index: int) -> str:
    """The text of one annotation. Raises RecordError ("missing_field", "empty_text")."""
    key = TEXT_OF[field]
    text = annotation(record, field, index).get(key)
    if not isinstance(text, str):
        raise RecordError("missing_field", f"{field}[{index}] has no {key!r}")
    if not text.strip():
        raise RecordError("empty_text", f"{field}[{index}][{key!r}] is empty")
    return text


def _check(condition: bool, reason: str, message: str) -> None:
    if not condition:
        raise RecordError(reason, message)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_size(record: Record, where: str) -> None:
    for key in ("width", "height"):
        size = record.get(key)
        _check(isinstance(size, int) and size > 0, "bad_size", f"{where}{key} must be a positive integer: {size!r}")


def _check_spans(spans: Any, text: str, where: str) -> None:
    _check(isinstance(spans, list) and len(spans) > 0, "bad_span", f"{where} must be a list of [start, end)")
    for span in spans:
        ok = isinstance(span, (list, tuple)) and len(span) == 2 and all(isinstance(x, int) for x in span)
        _check(ok and 0 <= span[0] < span[1] <= len(text), "bad_span", f"{where}: {span!r} is not in {text!r:.99}")
        _check(bool(text[span[0] : span[1]].strip()), "bad_span", f"{where}: {span!r} of {text!r:.99} is blank")


def _check_boxes(record: Record, categories: set[int] | None) -> None:
    width, height = record["width"], record["height"]
    for i, entry in enumerate(record.get("boxes", [])):
        box, where = entry.get("box"), f"boxes[{i}]"
        ok = isinstance(box, (list, tuple)) and len(box) == 4 and all(map(_number, box))
        _check(ok, "bad_box", f"{where} must be four finite numbers, got {box!r}")
        x0, y0, x1, y1 = box
        _check(x1 > x0 and y1 > y0, "bad_box", f"{where} = {box!r} has no area ([x0, y0, x1, y1])")
        inside = x0 >= -1 and y0 >= -1 and x1 <= width + 1 and y1 <= height + 1
        _check(inside, "bad_box", f"{where} = {box!r} leaves the {width}x{height} image")
        _check(_number(entry.get("area", 0)), "bad_box", f"{where}.area must be a number: {entry.get('area')!r:.100}")
        category, listed = entry.get("category", 0), categories if "category" in entry else None
        known = isinstance(category, int | str) and (listed is None or category in listed)
        _check(known, "bad_category", f"{where} has the unknown category {category!r:.100}")
    for field in ("negative_categories", "not_exhaustive_categories"):
        unknown = set(record.get(field, ())) - (categories if categories is not None else set(record.get(field, ())))
        _check(not unknown, "bad_category", f"{field} names the unknown categories {sorted(unknown)}")


def _check_texts(record: Record) -> None:
    boxes = len(record.get("boxes", []))
    for field in TEXT_OF:
        for i in range(len(record.get(field, []))):
            entry, where = record[field][i], f"{field}[{i}]"
            text = annotation_text(record, field, i)
            named = isinstance(entry.get("id", None if field in ("questions", "statements") else 0), int | str)
            _check(named, "bad_id", f"{where}.id must be a number or a text")
            if "span" in entry:
                _check_spans(entry["span"], text, f"{where}.span")
            for j, phrase in enumerate(entry.get("phrases", [])):
                _check_spans(phrase.get("span"), text, f"{where}.phrases[{j}].span")
                wrong = [b for b in phrase.get("boxes", []) if not (isinstance(b, int) and 0 <= b < boxes)]
                _check(not wrong, "bad_index", f"{where}.phrases[{j}].boxes: {wrong} are not among {boxes} boxes")
            if field == "expressions":
                index = entry.get("box")
                ok = isinstance(index, int) and 0 <= index < boxes
                _check(ok, "bad_index", f"{where}.box: {index!r} is not among {boxes} boxes")
            if field == "hypotheses":
                label = entry.get("label")
                _check(label in LABELS, "bad_label", f"{where}.label must be one of {LABELS}, got {label!r}")
            if field == "statements" and "label" in entry:
                _check(isinstance(entry["label"], bool), "bad_label", f"{where}.label must be true or false")


def _check_answers(record: Record) -> None:
    for i, question in enumerate(record.get("questions", [])):
        for j, answer in enumerate(question.get("answers", [])):
            text, score, where = answer.get("answer"), answer.get("score"), f"questions[{i}].answers[{j}]"
            _check(isinstance(text, str) and text.strip() != "", "empty_text", f"{where}.answer is empty")
            _check(_number(score) and 0 <= score <= 1, "bad_score", f"{where}.score must lie in [0, 1]: {score!r}")


def validate_record(record: Record, categories: set[int] | None = None) -> None:
    """Checks a record against the schema above.

    categories: the category ids of the data set; None checks no ids.
    Raises RecordError(reason, message naming field and index): "missing_field", "bad_size", "bad_box",
    "bad_category", "bad_span", "bad_index", "bad_label", "bad_score", "bad_id", "bad_field", "empty_text".
    """
    try:
        _check_record(record, categories)
    except RecordError:
        raise
    except Exception as error:  # a list where an object should be, and the like, anywhere in it
        raise RecordError("bad_field", f"not of the schema: {type(error).__name__}: {error}") from None


def _check_record(record: Record, categories: set[int] | None) -> None:
    for key in ("image_id", "source"):
        value = record.get(key)
        text = isinstance(value, str) and value != ""
        _check(text, "missing_field", f"{key} must be a non-empty string: {value!r}")
    _check_size(record, "")
    for field in (*FIELDS, "negative_categories", "not_exhaustive_categories", "images"):
        _check(isinstance(record.get(field, []), list), "bad_field", f"{field} must be a list")
    for i, image in enumerate(record.get("images", [])):
        _check_size(image, f"images[{i}].")
    _check_boxes(record, categories)
    _check_texts(record)
    _check_answers(record)
    json.dumps(record, ensure_ascii=False).encode()  # raises where half a character stands: no tokenizer takes it


def broken(record: Record) -> RecordError | None:
    """How a record breaks the schema."""
    try:
        validate_record(record)
    except RecordError as error:
        return error
    return None


REQUIRED = ("image_id", "width", "height", "source")


def clean_name(name: str) -> str:
    """Class name as it stands in a caption: underscores to blanks, parenthesised remarks dropped (unless nothing
    else is left), blanks merged. Raises ValueError on a blank name."""
    words = " ".join(name.replace("_", " ").split())
    short = " ".join(re.sub(r"\([^)]*\)", " ", words).split())
    short = short or " ".join(words.replace("(", " ").replace(")", " ").split())
    if not short:
        raise ValueError(f"class name {name!r} is blank")
    return short
