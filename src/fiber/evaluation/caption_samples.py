"""Samples of captioning: an image with one of its captions, with all of them, or with none.

Shape letters: S image side, L text length, K captions drawn an image, T tokens of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from fiber.data.records import Record, Sample, annotation_text
from fiber.data.samples.text import ImageTransform
from fiber.data.shards import ShardSet
from fiber.data.text import encode
from fiber.errors import SampleFault


@dataclass(frozen=True)
class RewardSample:
    """For training on the reward of whole captions: one caption, as the samples of `data.samples.text`, and what it
    takes to draw others and judge them.

    Returns images uint8 (3,S,S); ids, mask int64 (L,); text (str); references (list of str, all captions of the
    image); draws float64 (K,T), uniform in [0,1), one for every token that may be drawn. An image is mirrored
    only where `ImageTransform` allows it for all of its captions.
    """

    tokenizer: PreTrainedTokenizerFast
    transform: ImageTransform
    max_text: int
    captions: int
    tokens: int

    def __call__(self, sample: Sample, field: str, number: int, rng: np.random.Generator) -> dict[str, Any]:
        text, references = annotation_text(sample.record, field, number), texts(sample.record)
        ids, mask = encode(self.tokenizer, text, self.max_text)
        return {
            "images": self.transform(sample.images[0][1], "\n".join(references), rng),
            "ids": ids,
            "mask": mask,
            "text": text,
            "references": references,
            "draws": rng.random((self.captions, self.tokens)),
        }


@dataclass(frozen=True)
class CaptionEvalSample:
    """For evaluation: images uint8 (3,S,S), image (str, the image_id of the record), references (its captions, maybe
    none), domain (str, empty where the record has none)."""

    transform: ImageTransform

    def __call__(self, sample: Sample, field: str, number: int, rng: np.random.Generator) -> dict[str, Any]:
        record = sample.record
        return {
            "images": self.transform(sample.images[0][1], "", rng),
            "image": record["image_id"],
            "references": texts(record),
            "domain": record.get("domain", ""),
        }


def texts(record: Record) -> list[str]:
    """The captions of a record that are not blank."""
    return [caption["text"] for caption in record.get("captions", []) if caption["text"].strip()]


def all_texts(sets: Iterable[ShardSet]) -> Iterator[list[str]]:
    """The captions of every image that has some, without reading images; damaged records, which training counts when
    it meets them, left out."""
    for shards in sets:
        for number in np.flatnonzero(shards.counts("captions")).tolist():
            try:
                found = texts(shards.record(number))
            except (SampleFault, AttributeError, KeyError, TypeError):
                continue
            if found:
                yield found
