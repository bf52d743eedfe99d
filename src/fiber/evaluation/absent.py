"""Phrases of records: those that have boxes, and phrases of other images that an image does not show.

Absent phrases are negatives of training and what an evaluation asks for in vain. What an image shows is known by its
texts alone, so the rule is careful: a phrase is absent where it shares no content word with any text or class name
of the image, and all words for people count as one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from fiber.data import records
from fiber.data.records import Record, SetFacts
from fiber.data.shards import ShardSet

BANK_IMAGES = 1000  # the first images of a set: their phrases serve for all the others
PEOPLE = """man men woman women person people boy girl child children kid baby babies toddler guy lady ladies
gentleman player worker rider someone crowd group couple family team adult male female"""
COMMON = """a an the this that these those some two three four several many one other another his her its their of in
on at to by with from for and or is are left right front back top bottom middle side"""


def phrases_with_boxes(record: Record, field: str, annotation: int) -> tuple[str, list[tuple[list, list[int]]]]:
    """The text of a caption or an expression and its phrases, each (spans, indices of its boxes); an expression
    without span means its whole text. Phrases without boxes are left out."""
    text = records.annotation_text(record, field, annotation)
    entry = records.annotation(record, field, annotation)
    if field == "expressions":
        return text, [(entry.get("span") or [[0, len(text)]], [entry["box"]])]
    phrases = [(phrase["span"], phrase["boxes"]) for phrase in entry.get("phrases", ()) if phrase.get("boxes")]
    return text, phrases


def content_words(text: str) -> frozenset[str]:
    """Stems of the words of a text that name or describe something: in lower case, without an ending of e, i, s, y,
    so that "bus" and "buses", "puppy" and "puppies" are the same; every word for people is "person"."""
    people, common = PEOPLE.split(), COMMON.split()
    words = {word for word in re.findall(r"[^\W_]+", text.lower()) if word not in common}
    named = {"person" if word in people or word.removesuffix("s") in people else word for word in words}
    return frozenset(word.rstrip("eisy") or word for word in named)


def words_of(record: Record, facts: SetFacts) -> frozenset[str]:
    """The content words of all captions, expressions and classes of a record."""
    texts = [entry["text"] for field in ("captions", "expressions") for entry in record.get(field, ())]
    labels = {box["category"] for box in record.get("boxes", ()) if box.get("category") in facts.index}
    return content_words(" ".join([*texts, *(facts.names[facts.index[label]] for label in labels)]))


class PhraseBank:
    """The phrases with boxes, and the texts, of the first images of a set. field: "captions" or "expressions"."""

    def __init__(self, shards: ShardSet, field: str) -> None:
        self.facts = shards.facts
        phrases: dict[str, None] = {}  # in the order of the set, each once
        texts: dict[str, None] = {}
        for record in shards.valid_records(BANK_IMAGES):
            for number in range(records.count(record, field)):
                text, named = phrases_with_boxes(record, field, number)
                texts[text] = None
                phrases |= {" ".join(text[start:end] for start, end in spans): None for spans, _ in named}
        self.phrases, self.texts = ([(t, content_words(t)) for t in found] for found in (phrases, texts))

    def absent_phrases(self, record: Record, count: int, rng: np.random.Generator) -> list[str]:
        """Up to `count` phrases that the image of `record` does not show, drawn by `rng`. For an evaluation, that
        asks the same whenever it runs: np.random.default_rng([seed, records.image_hash(record["image_id"])])."""
        return _draw(self.phrases, words_of(record, self.facts), count, rng)

    def other_text(self, record: Record, rng: np.random.Generator) -> str | None:
        """A caption of another image of which nothing is in the image of `record`; None where the bank has none."""
        return next(iter(_draw(self.texts, words_of(record, self.facts), 1, rng)), None)


def _draw(
    bank: Sequence[tuple[str, frozenset[str]]], shown: frozenset[str], count: int, rng: np.random.Generator
) -> list[str]:
    drawn: list[str] = []
    for place in rng.permutation(len(bank)):
        text, words = bank[place]
        if len(drawn) == count:
            break
        if words and not words & shown:
            drawn.append(text)
    return drawn
