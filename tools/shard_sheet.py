"""The contact sheet of tools/inspect_shards.py: images with their boxes, annotations below."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fiber.data.records import Record, Sample
from fiber.data.shards import ShardSet
from fiber.images.codec import decode

COLOURS = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4", "#008080", "#aa6e28", "#800000")


def contact_sheet(shards: ShardSet, path: Path, number: int, side: int, columns: int = 4) -> None:
    """A PNG of ``number`` samples, evenly spread: images with their boxes, annotations below."""
    chosen = np.unique(np.linspace(0, len(shards) - 1, min(number, len(shards))).astype(int))
    tiles = [_tile(shards.read(int(i)), {c["id"]: c["name"] for c in shards.categories}, side) for i in chosen]
    columns = min(columns, len(tiles))
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (columns * (side + 8), sum(heights) + 8 * len(rows)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for k, tile in enumerate(row):
            sheet.paste(tile, (k * (side + 8), top))
        top += height + 8
    sheet.save(path)


def _tile(sample: Sample, names: dict[int, str], side: int) -> Image.Image:
    each = side // len(sample.images)
    images = [Image.fromarray(decode(data)) for _, data in sample.images]
    scales = [min(each / image.width, side / image.height) for image in images]
    sizes = [(max(1, int(p.width * s)), max(1, int(p.height * s))) for p, s in zip(images, scales, strict=True)]
    top = max(height for _, height in sizes)
    lines = [part for text, colour in _lines(sample.record) for part in _wrap(text, colour, side // 6)]
    tile = Image.new("RGB", (side, top + 12 * len(lines) + 4), "white")
    for k, (image, size) in enumerate(zip(images, sizes, strict=True)):
        tile.paste(image.resize(size, Image.Resampling.BICUBIC), (k * each, 0))
    draw = ImageDraw.Draw(tile)
    for i, entry in enumerate(sample.record.get("boxes", [])):
        colour = COLOURS[i % len(COLOURS)]
        box = [x * scales[0] for x in entry["box"]]
        draw.rectangle(box, outline=colour, width=2)
        label = f"{i} {names.get(entry.get('category'), '')}".strip()
        corner = (max(box[0], 0) + 3, max(box[1], 0) + 2)
        draw.rectangle(draw.textbbox(corner, label), fill="white")
        draw.text(corner, label, fill=colour)
    for k, (text, colour) in enumerate(lines):
        draw.text((0, top + 2 + 12 * k), text, fill=colour)
    return tile


def _lines(record: Record) -> list[tuple[str, str]]:
    """What is said of an image, one line each, phrases in the colour of their first box."""
    lines: list[tuple[str, str]] = [(record["image_id"], "#888888")]
    for caption in record.get("captions", [])[:6]:
        lines.append((caption["text"], "#000000"))
        for phrase in caption.get("phrases", []):
            if phrase["boxes"]:
                words = " .. ".join(caption["text"][start:end] for start, end in phrase["span"])
                colour = COLOURS[phrase["boxes"][0] % len(COLOURS)]
                lines.append((f"    {words} -> {', '.join(map(str, phrase['boxes']))}", colour))
    for entry in record.get("expressions", [])[:6]:
        lines.append((f"{entry['text']} -> {entry['box']}", COLOURS[entry["box"] % len(COLOURS)]))
    for entry in record.get("questions", [])[:4]:
        answers = ", ".join(f"{a['answer']} {a['score']:g}" for a in entry.get("answers", []))
        lines.append((f"Q: {entry['question']}  {answers}", "#000000"))
    lines += [(f"{entry['label']}: {entry['text']}", "#000000") for entry in record.get("hypotheses", [])[:4]]
    lines += [
        (f"{entry.get('label', '?')}: {entry['text']}", "#000000") for entry in record.get("statements", [])[:4]
    ]
    return lines


def _wrap(text: str, colour: str, width: int) -> list[tuple[str, str]]:
    """Lines of at most ``width`` characters; the built-in font knows Latin-1 only."""
    shown = text.encode("latin-1", "replace").decode("latin-1")
    return [(line, colour) for line in textwrap.wrap(shown, width, subsequent_indent="  ", drop_whitespace=False)]
