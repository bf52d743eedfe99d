"""One item -> one sample: read the images, check them, fit the record to the stored pixels, validate."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from fiber.data.convert.items import Drop, RawItem, UnusableItem
from fiber.data.records import FIELDS, Record, RecordError, Sample, clean_text, validate_record
from fiber.errors import SampleFault
from fiber.images.codec import (
    MAX_PIXELS,
    STORED,
    check_decodes,
    described,
    kind_of,
    orientation,
    shrink,
    upright_size,
)

_SLACK = 1.0  # pixels per box may leave the image by, as in the schema: rounding of annotators, not an error


@dataclass(frozen=True)
class Packing:
    """How images are stored. max_side: long side in pixels. reencode: every image becomes an RGB JPEG. stored_boxes:
    boxes are of images as they are stored, before an EXIF block turns them."""

    decode_check: bool = True
    max_side: int | None = None
    reencode: bool = False
    quality: int = 92
    stored_boxes: bool = False


def pack(item: RawItem, key: str, packing: Packing, categories: set[int] | None) -> tuple[Sample | None, list[Drop]]:
    """The sample, or None where the image is unusable or nothing annotated is left; and what was dropped."""
    image_id = item.record["image_id"]
    drops = list(item.drops)
    try:
        images, sizes, originals, turns = [], [], [], []
        for image in item.images:
            encoded = image.read()
            kind, data, original = _load(encoded, packing, image_id, drops)
            turns.append(orientation(encoded))
            images.append((kind, data))
            originals.append(original)
            sizes.append(upright_size(data))
        if item.fractions:
            item = _in_pixels(item, originals[0], packing.stored_boxes and turns[0] >= 5)
        if turns[0] != 1:
            item = _turned(item, turns[0], originals[0], packing.stored_boxes, drops)
        record = _fit(item, originals[0], sizes[0], drops)
        if not record.get("boxes") and categories is None:
            record.pop("boxes", None)  # only a detection set says "looked at, nothing found"
        if len(sizes) == 2:
            record["images"] = [{"width": width, "height": height} for width, height in sizes]
        if not any(field in record for field in FIELDS) and any(field in item.record for field in FIELDS):
            raise UnusableItem("no annotations left", "all of them were dropped")
        validate_record(record, categories)
    except (UnusableItem, RecordError) as error:
        return None, [*drops, Drop(error.reason, image_id, getattr(error, "detail", str(error)))]
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:  # a text for a number, ...
        return None, [*drops, Drop("entry malformed", image_id, f"{type(error).__name__}: {error}"[:300])]
    return Sample(key, images, record), drops


def _load(data: bytes, packing: Packing, image_id: str, drops: list[Drop]) -> tuple[str, bytes, tuple[int, int]]:
    """(kind, bytes to store, size before shrinking); an end mark that was added is noted. Raises UnusableItem."""
    kind = kind_of(data)
    if kind is None:
        raise UnusableItem("not an image" if data else "empty file", described(data))
    if kind not in STORED and not packing.reencode:
        raise UnusableItem("unsupported format", f"{kind}; --reencode stores it as JPEG")
    try:
        size = upright_size(data)
        pixels = size[0] * size[1]
        if pixels > MAX_PIXELS and not _reducible(kind, size, packing.max_side):
            limit = f"more than {MAX_PIXELS // 10**6} megapixels; make it smaller first, a JPEG by --max-side"
            raise UnusableItem("image too large", f"{size[0]} x {size[1]} pixels, {limit}")
        if packing.decode_check and pixels <= 3 * MAX_PIXELS:  # in grey, a byte per pixel
            sound = check_decodes(data)
            if sound != data:
                drops.append(Drop("end mark added", image_id, "the JPEG lacked its last two bytes", kept=True))
            data = sound
        if packing.reencode or (packing.max_side is not None and max(size) > packing.max_side):
            return "jpg", shrink(data, packing.max_side, packing.quality), size
    except SampleFault as fault:
        raise UnusableItem("broken image", str(fault)) from None
    return kind, data, size


def _reducible(kind: str, size: tuple[int, int], max_side: int | None) -> bool:
    """Whether an image of too many pixels is decoded in few enough at once: a JPEG in at most twice the sides that
    are asked for, or in an eighth of its own."""
    return kind == "jpg" and max_side is not None and 4 * max_side**2 * min(size) <= MAX_PIXELS * max(size)


def _turned(item: RawItem, turn: int, upright: tuple[int, int], stored_boxes: bool, drops: list[Drop]) -> RawItem:
    """The item, its boxes turned with the image where they are of the image as stored; noted either way."""
    if "boxes" not in item.record:
        return item
    which = "boxes turned with it" if stored_boxes else "boxes taken to be of the image as displayed"
    drops.append(Drop("image with an EXIF turn", item.image_id, f"orientation {turn}: {which}", kept=True))
    if not stored_boxes:
        return item
    width, height = item.size or (upright if turn < 5 else upright[::-1])
    boxes = [{**entry, "box": turned_box(entry["box"], turn, width, height)} for entry in item.record["boxes"]]
    return replace(
        item, record={**item.record, "boxes": boxes}, size=(width, height) if turn < 5 else (height, width)
    )


def _in_pixels(item: RawItem, upright: tuple[int, int], lying: bool) -> RawItem:
    """The item with boxes [x0, y0, x1, y1] in pixels and their areas, of the image as displayed or (`lying`) stored.

    Rounded to hundredths of a pixel, as COCO's own files are: labels of six digits say no more, and a set that was
    written once as YOLO and once as COCO becomes one and the same record.
    """
    width, height = upright[::-1] if lying else upright
    boxes = []
    for entry in item.record["boxes"]:
        x, y, w, h = (float(share) for share in entry["box"])
        w, h = w * width, h * height
        left, top = (round(start, 2) for start in (x * width - w / 2, y * height - h / 2))
        box = [left, top, left + round(w, 2), top + round(h, 2)]
        boxes.append({**entry, "box": box, "area": round(w * h, 2)})
    return replace(item, record={**item.record, "boxes": boxes}, size=(width, height), fractions=False)


def turned_box(box: list[float], turn: int, width: int, height: int) -> list[float]:
    """A box [x0, y0, x1, y1] of an image stored as width x height px, in the image as EXIF orientation `turn` (2..8)
    displays it."""
    x0, y0, x1, y1 = box
    if turn in (2, 3, 7, 8):  # mirrored from left to right
        x0, x1 = width - x1, width - x0
    if turn in (3, 4, 6, 7):  # and from top to bottom
        y0, y1 = height - y1, height - y0
    return [y0, x0, y1, x1] if turn >= 5 else [x0, y0, x1, y1]


def _fit(item: RawItem, original: tuple[int, int], stored: tuple[int, int], drops: list[Drop]) -> Record:
    """A copy of the record with sizes, boxes in stored pixels, clean texts; empty fields left out."""
    record = {field: value for field, value in item.record.items() if value != [] or field == "boxes"}
    record["width"], record["height"] = stored
    image_id = record["image_id"]
    if "boxes" in record:
        annotated = item.size or original
        if not _same_shape(annotated, original):
            lying = _same_shape(annotated, original[::-1])
            hint = "; if an EXIF block turns it and its boxes do not know: --stored-boxes" if lying else ""
            raise UnusableItem("size mismatch", f"annotated as {annotated}, the image is {original}{hint}")
        scale = (stored[0] / annotated[0], stored[1] / annotated[1])
        kept = _fit_boxes(record["boxes"], scale, stored, image_id, drops)
        record["boxes"] = [box for box in kept if box is not None]
        _renumber(record, kept, image_id, drops)
    for field, key in (("captions", "text"), ("expressions", "text"), ("questions", "question"),
                       ("hypotheses", "text"), ("statements", "text")):  # fmt: skip
        if field in record:
            record[field] = _clean_texts(record[field], key, image_id, drops)
            if not record[field]:
                del record[field]
    return record


def _same_shape(annotated: tuple[int, int], actual: tuple[int, int]) -> bool:
    """Equal sizes, or one a rescaled copy of the other (a folder of resized images) up to a pixel of rounding."""
    (w0, h0), (w1, h1) = annotated, actual
    scale = math.sqrt((w1 * h1) / (w0 * h0)) if w0 > 0 and h0 > 0 else 0
    return abs(w0 * scale - w1) <= 1 + scale and abs(h0 * scale - h1) <= 1 + scale


def _fit_boxes(
    boxes: list[dict[str, Any]], scale: tuple[float, float], stored: tuple[int, int], image_id: str, drops: list[Drop]
) -> list[dict[str, Any] | None]:
    """Scaled and clipped boxes, None where nothing is left of one."""
    kept: list[dict[str, Any] | None] = []
    sides = (scale[0], scale[1], scale[0], scale[1])
    limits = (stored[0], stored[1], stored[0], stored[1])
    for entry in boxes:
        box = [float(x) + 0.0 for x in entry["box"]]  # -0.0 becomes 0.0
        if not all(map(math.isfinite, box)):
            drops.append(Drop("box not finite", image_id, str(entry["box"])))
            kept.append(None)
            continue
        if scale != (1.0, 1.0):
            box = [x * side for x, side in zip(box, sides, strict=True)]
        if box[2] <= box[0] or box[3] <= box[1]:
            drops.append(Drop("box without area", image_id, str(entry["box"])))
            kept.append(None)
            continue
        if any(x < -_SLACK or x > limit + _SLACK for x, limit in zip(box, limits, strict=True)):
            box = [min(max(x, 0.0), float(limit)) for x, limit in zip(box, limits, strict=True)]
            outside = box[2] <= box[0] or box[3] <= box[1]
            reason = "box outside the image" if outside else "box clipped to the image"
            drops.append(Drop(reason, image_id, f"{entry['box']} in {stored}", kept=not outside))
            if outside:
                kept.append(None)
                continue
        fitted = {**entry, "box": box}
        if "area" in entry and scale != (1.0, 1.0):
            fitted["area"] = entry["area"] * scale[0] * scale[1]
        kept.append(fitted)
    return kept


def _renumber(record: Record, kept: list[dict[str, Any] | None], image_id: str, drops: list[Drop]) -> None:
    """Box indices of phrases and expressions after boxes went; what referred to a lost box goes too."""
    if all(box is not None for box in kept):
        return
    new: dict[int, int] = {}
    for old, box in enumerate(kept):
        if box is not None:
            new[old] = len(new)
    if "captions" in record:
        record["captions"] = [
            {
                **caption,
                **(
                    {
                        "phrases": [
                            {**p, "boxes": [new[b] for b in p["boxes"] if b in new]} for p in caption["phrases"]
                        ]
                    }
                    if "phrases" in caption
                    else {}
                ),
            }
            for caption in record["captions"]
        ]
    if "expressions" in record:
        lost = [e for e in record["expressions"] if e["box"] not in new]
        drops.extend(Drop("expression without a box", image_id, e["text"]) for e in lost)
        record["expressions"] = [{**e, "box": new[e["box"]]} for e in record["expressions"] if e["box"] in new]


def _clean_texts(entries: list[dict[str, Any]], key: str, image_id: str, drops: list[Drop]) -> list[dict[str, Any]]:
    """White space normalised, spans moved along, entries without text left out."""
    cleaned = []
    for entry in entries:
        raw = entry[key]
        text = clean_text(raw) if isinstance(raw, str) else ""
        if not text:
            drops.append(Drop("empty text", image_id, repr(raw)))
            continue
        if text != raw and ("span" in entry or "phrases" in entry):
            entry = _move_spans(entry, raw)
        cleaned.append(entry if text == raw else {**entry, key: text})
    return cleaned


def _move_spans(entry: dict[str, Any], raw: str) -> dict[str, Any]:
    """Spans of ``raw`` as spans of ``clean_text(raw)``."""
    position, at = [], 0  # position[i]: where character i of raw begins in the clean text
    for i, char in enumerate(raw):
        position.append(at)
        if not char.isspace() or (at > 0 and i + 1 < len(raw) and not raw[i + 1].isspace()):
            at += 1
    position.append(at)

    def move(spans: list[list[int]]) -> list[list[int]]:
        return [[position[start], position[end]] if end <= len(raw) else [start, end] for start, end in spans]

    moved = dict(entry)
    if "span" in entry:
        moved["span"] = move(entry["span"])
    if "phrases" in entry:
        moved["phrases"] = [{**phrase, "span": move(phrase["span"])} for phrase in entry["phrases"]]
    return moved
