"""Region samples: a record becomes a caption, boxes in pixels of the resized image, and the tokens that each box
answers to. Grounding captions, referring expressions and detection labels all take this form.

Nothing is dropped silently: each box that cannot be used leaves a `Fault` with its reason. Two exclusions are rules,
not faults: crowd regions of detection sets, and captions' phrases without boxes.

Shape letters: B images, (H,W) padded size, (h,w) an image's own, L text length, n boxes of an image, N of all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fiber.data.loader import Fault
from fiber.data.prompts import MAX_NEGATIVES, SEPARATOR, Prompt, PromptBuilder
from fiber.data.records import Record, Sample, SetFacts
from fiber.data.samples.images import fitted, pad_images, read_image, resize
from fiber.data.shards import ShardSet
from fiber.errors import SampleFault, ShardError
from fiber.evaluation.absent import PhraseBank, phrases_with_boxes
from fiber.images.augment import mentions_sides

REGION_FIELDS = ("captions", "expressions", "boxes")
"""Annotation fields that region samples are made of."""


def check_set(shards: ShardSet, field: str, whole: PromptBuilder | None = None) -> None:
    """Raises ShardError where `field` of a set's records cannot be made into region samples (judging captions by the
    first hundred images), or where `whole` cannot put all classes into one caption."""
    if field == "boxes" and not shards.facts.names:
        raise ShardError(f"{shards.where}: its dataset.json lists no categories, so its boxes have no names")
    if field == "boxes" and whole is not None:
        try:
            whole.classes(shards.facts.names)
        except ValueError as error:
            raise ShardError(f"regions.classes: all of {shards.where}: {error}; or choose sampled") from None
    if field == "captions" and not any("phrases" in c for r in shards.valid_records(100) for c in r.get(field, ())):
        raise ShardError(f"{shards.where}: its captions have no phrases with boxes, nothing to ground")


@dataclasses.dataclass
class RegionSample:
    """make_sample of stage 2, see `__call__`. absent_phrases: so many are put behind a grounding caption.
    other_caption: probability of another image's caption, of which this one shows nothing, in place of its own."""

    builder: PromptBuilder
    short_sides: Sequence[int]  # px; one is drawn for each sample
    max_side: int  # px, of the other side
    flip: float = 0.5  # probability of mirroring an image whose caption has no left or right
    vertical_flip: float = 0.0  # probability of turning an image with labels upside down
    # In the caption of an image with labels: its classes and absent ones, drawn, in random order; or all of the set.
    classes: Literal["sampled", "all"] = "sampled"
    shuffle: bool = False  # all classes in a new order each time, not in the set's, as evaluation asks for them
    max_negatives: int = MAX_NEGATIVES
    most_negatives: bool = False  # always as many absent classes as fit, `max_negatives` at most
    absent_phrases: int = 0
    other_caption: float = 0.0
    _whole: dict[str, Prompt] = dataclasses.field(default_factory=dict)  # prompts of all classes, by set
    _banks: dict[str, PhraseBank] = dataclasses.field(default_factory=dict)  # phrases of captions, by set

    def __call__(self, sample: Sample, field: str, annotation: int, rng: np.random.Generator) -> dict[str, Any]:
        """image uint8 (3,h,w); prompt; boxes (n,4) float32 xyxy px of that image, clipped to it; box_tokens (n,L)
        bool, L the text limit; dropped: one Fault per box left out.

        A box that several phrases of a caption name has the tokens of them all. Raises SampleFault.
        """
        side, mirror = self.short_sides[int(rng.integers(len(self.short_sides)))], rng.random() < self.flip
        record = sample.record
        if field == "boxes":
            prompt, tokens, reasons = self._labels(record, sample.facts, rng)
        else:
            prompt, tokens, reasons = self._phrases(record, field, annotation, sample.facts, rng)
        image = read_image(sample)
        height, width = image.shape[:2]
        new_width, new_height = fitted(width, height, side, self.max_side)
        boxes, box_tokens = [], []
        for index, row in tokens.items():
            box, reason = clipped(box_at(record, index), width, height)
            if reason:
                reasons.append(reason)
            else:
                boxes.append(box)
                box_tokens.append(row)
        scale = torch.tensor([new_width / width, new_height / height] * 2)
        placed = torch.tensor(boxes, dtype=torch.float32).view(-1, 4) * scale
        pixels = resize(image, new_width, new_height)
        if mirror and not mentions_sides(prompt.text):
            pixels = pixels.flip(2)
            placed[:, [0, 2]] = new_width - placed[:, [2, 0]]
        if field == "boxes" and self.vertical_flip and rng.random() < self.vertical_flip:
            pixels = pixels.flip(1)
            placed[:, [1, 3]] = new_height - placed[:, [3, 1]]
        return {
            "image": pixels,
            "prompt": prompt,
            "boxes": placed,
            "box_tokens": torch.stack(box_tokens) if box_tokens else prompt.token_map[:0],
            "dropped": [Fault(sample.facts.path, sample.key, reason) for reason in reasons],
        }

    def _phrases(
        self, record: Record, field: str, annotation: int, facts: SetFacts, rng: np.random.Generator
    ) -> tuple[Prompt, dict[int, Tensor], list[str]]:
        """Prompt, tokens (L,) by index of the box, reasons of boxes left out: of a caption or an expression."""
        text, phrases = phrases_with_boxes(record, field, annotation)
        asked = text
        if field == "captions" and (self.absent_phrases or self.other_caption):
            if facts.path not in self._banks:
                self._banks[facts.path] = PhraseBank(ShardSet(facts.path), field)
            bank = self._banks[facts.path]
            if rng.random() < self.other_caption and (other := bank.other_text(record, rng)):
                return self.builder.sentence(other, []), {}, []
            for phrase in bank.absent_phrases(record, self.absent_phrases, rng):
                asked += (" " if asked.rstrip().endswith(".") else SEPARATOR) + phrase
        prompt = self.builder.sentence(asked, [span for span, _ in phrases])
        tokens: dict[int, Tensor] = {}
        reasons: list[str] = []
        for row, (span, boxes) in zip(prompt.token_map, phrases, strict=True):
            if any(start < 0 or end > len(text) for start, end in span):
                reasons += ["span_outside_text"] * len(boxes)
            elif not row.any():
                reasons += ["phrase_beyond_text_limit"] * len(boxes)
            else:
                for index in boxes:
                    tokens[index] = tokens[index] | row if index in tokens else row
        return prompt, tokens, reasons

    def _labels(
        self, record: Record, facts: SetFacts, rng: np.random.Generator
    ) -> tuple[Prompt, dict[int, Tensor], list[str]]:
        """The same of an image with class labels. Absent classes are drawn from the record's list where it has one (a
        set that is not annotated exhaustively), else, and with `most_negatives`, from all others."""
        labels: dict[int, int] = {}
        reasons = []
        for place, box in enumerate(record.get("boxes", [])):
            if box.get("crowd"):
                continue
            if box.get("category") in facts.index:
                labels[place] = facts.index[box["category"]]
            else:
                reasons.append("unknown_category")
        left_out: list[int] = []
        try:
            if self.classes == "all":
                prompt = self._all_classes(facts, rng)
            else:
                listed = None if self.most_negatives else record.get("negative_categories")
                negatives = None if listed is None else [facts.index[c] for c in listed if c in facts.index]
                limits = self.max_negatives, self.most_negatives
                prompt, left_out = self.builder.detection(facts.names, labels.values(), rng, negatives, *limits)
        except ValueError as error:
            raise SampleFault("empty_prompt", str(error)) from None
        rows = dict(zip(prompt.classes, prompt.token_map, strict=True))
        reasons += ["class_beyond_text_limit" for label in labels.values() if label in set(left_out)]
        return prompt, {place: rows[label] for place, label in labels.items() if label in rows}, reasons

    def _all_classes(self, facts: SetFacts, rng: np.random.Generator) -> Prompt:
        if self.shuffle:
            return self.builder.classes(facts.names, rng.permutation(len(facts.names)).tolist())
        if facts.path not in self._whole:
            self._whole[facts.path] = self.builder.classes(facts.names)
        return self._whole[facts.path]


def box_at(record: Record, index: int) -> Any:
    """Box number `index` of a record. Raises SampleFault("bad_index")."""
    boxes = record.get("boxes", [])
    if not (isinstance(index, int) and 0 <= index < len(boxes)):
        raise SampleFault("bad_index", f"box {index!r} is not among the record's {len(boxes)} boxes")
    return boxes[index]["box"]


def clipped(box: Sequence[float], width: int, height: int) -> tuple[list[float], str]:
    """A box cut to its image, and "" or why it cannot be used: "box_not_finite"; "box_without_area", which corners
    in the wrong order and boxes outside the image have too."""
    if len(box) != 4 or not all(isinstance(side, int | float) and math.isfinite(side) for side in box):
        return [], "box_not_finite"
    x0, x1 = (min(max(x, 0), width) for x in box[0::2])
    y0, y1 = (min(max(y, 0), height) for y in box[1::2])
    return [x0, y0, x1, y1], "" if x1 > x0 and y1 > y0 else "box_without_area"


def collate_regions(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples -> the batch of GroundingTask: images (B,3,H,W) uint8, sizes (B,2), ids and mask (B,L) cut to the
    longest caption, boxes (N,4), box_image (N,), box_tokens (N,L); and dropped, the Faults of all boxes left out."""
    images, sizes = pad_images([sample["image"] for sample in samples])
    prompts = [sample["prompt"] for sample in samples]
    length = int(max(prompt.mask.sum() for prompt in prompts))
    counts = torch.tensor([len(sample["boxes"]) for sample in samples])
    return {
        "images": images,
        "sizes": sizes,
        "ids": torch.stack([prompt.ids[:length] for prompt in prompts]),
        "mask": torch.stack([prompt.mask[:length] for prompt in prompts]),
        "boxes": torch.cat([sample["boxes"] for sample in samples]),
        "box_image": torch.repeat_interleave(torch.arange(len(samples)), counts),
        "box_tokens": torch.cat([sample["box_tokens"][:, :length] for sample in samples]),
        "texts": [prompt.text for prompt in prompts],
        "dropped": [fault for sample in samples for fault in sample["dropped"]],
    }
