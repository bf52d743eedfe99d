"""The contact sheet of `fiber inspect`: images with their boxes, annotations below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fiber.data.records import Record, Sample, validate_record
from fiber.data.shards import ShardSet
from fiber.errors import SampleFault, ShardError
from fiber.images.codec import decode_pil
from fiber.images.draw import MIN_SIDE, Line, draw_boxes, draw_lines, tile


def contact_sheet(shards: ShardSet, path: Path, number: int, side: int, columns: int = 4) -> None:
    """A PNG of ``number`` samples, evenly spread: images with their boxes, annotations below."""
    chosen = np.unique(np.linspace(0, len(shards) - 1, min(number, len(shards))).astype(int))
    side = max(side, MIN_SIDE)
    names = {category["id"]: category["name"] for category in shards.categories}
    figures = [_figure_or_fault(shards, int(i), names, side) for i in chosen]
    if not figures:
        raise ShardError(f"{shards.where}: no samples to draw")
    tile(figures, columns).save(path)


def _figure_or_fault(shards: ShardSet, i: int, names: dict[Any, str], side: int) -> Image.Image:
    """The sample, or what is wrong with it: a sheet is made to find damage."""
    try:
        sample = shards.read(i)
        validate_record(sample.record)
        return _figure(sample, names, side)
    except (SampleFault, MemoryError) as fault:
        text = " ".join("{} {}".format(*shards.place(i)).split())
        return draw_lines(Image.new("RGB", (side, side), "grey"), [_plain(text), _plain(str(fault)[:200])])


def _figure(sample: Sample, names: dict[Any, str], side: int) -> Image.Image:
    """A sample's images in a row, ``side`` px each, boxes in the first; a box and what is said of it share a
    colour."""
    decoded = [decode_pil(data) for _, data in sample.images]
    images = [ImageOps.contain(image, (side, side)) for image in decoded]
    boxes = sample.record.get("boxes", [])
    labels = [f"{i} {names.get(entry.get('category'), '')}".strip() for i, entry in enumerate(boxes)]
    if boxes:
        images[0] = draw_boxes(
            images[0], decoded[0].size, [entry["box"] for entry in boxes], labels, range(len(boxes))
        )
    return draw_lines(images[0] if len(images) == 1 else tile(images, len(images)), _lines(sample.record))


def _lines(record: Record) -> list[Line]:
    """What is said of an image, phrases on the colour of their first box."""
    lines: list[Line] = [_plain(record["image_id"])]
    for caption in record.get("captions", [])[:6]:
        spans = [(span, phrase["boxes"][0]) for phrase in caption.get("phrases", []) if phrase.get("boxes")
                 for span in phrase["span"]]  # fmt: skip
        lines.append((caption["text"], [(start, end) for (start, end), _ in spans], [box for _, box in spans]))
    for entry in record.get("expressions", [])[:6]:
        lines.append((entry["text"], [(0, len(entry["text"]))], [entry["box"]]))
    for entry in record.get("questions", [])[:4]:
        answers = ", ".join(f"{a['answer']} {a['score']:g}" for a in entry.get("answers", []))
        lines.append(_plain(f"Q: {entry['question']}  {answers}"))
    lines += [_plain(f"{entry['label']}: {entry['text']}") for entry in record.get("hypotheses", [])[:4]]
    lines += [_plain(f"{entry.get('label', '?')}: {entry['text']}") for entry in record.get("statements", [])[:4]]
    return lines


def _plain(text: str) -> Line:
    return text, (), ()
