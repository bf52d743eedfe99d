"""RefCOCO, RefCOCO+ and RefCOCOg from their own files: refs(*).p and instances.json (lichengunc/refer).

The pickles are read by an unpickler that can build nothing but plain data. They have no spans: the root noun phrase
of each expression, which its box answers to, is computed (root_phrase).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert import coco_folder
from fiber.data.convert.items import ConversionError, Drop, RawDataset, RawItem, Request, each, existing
from fiber.data.convert.json_stream import Grouped, iter_array
from fiber.data.convert.plain_pickle import load_plain
from fiber.data.convert.root_phrase import Span, root_phrases
from fiber.data.records import clean_text

SPLITS = ("train", "val", "testA", "testB", "test")
VARIANTS = ("refcoco-unc", "refcoco-google", "refcoco+-unc", "refcocog-umd", "refcocog-google")

LICENCE = "annotations Apache-2.0 (refer) and CC-BY-4.0 (COCO); images: terms of Flickr"


def load_refs(path: Path) -> list[dict[str, Any]]:
    """The list in a refs(*).p (Python 2, protocol 0). Raises ConversionError for anything but plain data."""
    try:
        refs = load_plain(path)
    except ValueError as error:
        raise ConversionError(str(error)) from None
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ConversionError(f"{path}: expected a pickled list of references")
    return refs


def read(request: Request) -> RawDataset:
    """One record per image: boxes of its referred objects and their expressions."""
    data, _, split_by = (request.variant or VARIANTS[0]).partition("-")
    places = [request.raw / data, request.raw / "data" / data, request.raw]
    if request.annotations is not None:
        path = existing([request.annotations], "the references")
    else:
        path = existing([place / f"refs({split_by}).p" for place in places], f"refs({split_by}).p of {data}")
    instances = existing([path.parent / "instances.json"], "instances.json next to the references")
    refs = load_refs(path)
    splits = sorted({ref["split"] for ref in refs})
    if request.split not in splits:
        raise ConversionError(f"{path} has no split {request.split!r}; it has {', '.join(splits)}")
    by_image: dict[int, list[dict[str, Any]]] = {}
    for ref in refs:
        if ref["split"] == request.split:
            by_image.setdefault(ref["image_id"], []).append(ref)
    root_phrase, found_by, note = root_phrases()
    provenance = {"converter": "refcoco", "variant": request.variant, "file": path.name, "bytes": path.stat().st_size,
                  "root_phrases": found_by}  # fmt: skip
    name = f"{data.replace('+', 'plus')}_{split_by}"
    items = _items(by_image, instances, request, root_phrase)
    return RawDataset(name, request.split, LICENCE, provenance, items, len(by_image), notes=[note])


def _items(
    by_image: dict[int, list[dict[str, Any]]],
    instances: Path,
    request: Request,
    root_phrase: Callable[[str], Span],
) -> Iterator[RawItem | Drop]:
    annotations = Grouped(instances, "annotations", lambda entry: entry["id"])
    images = (entry for entry in iter_array(instances, "images") if isinstance(entry, dict))
    sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in images
             if entry.get("id") in by_image and {"width", "height"} <= entry.keys()}  # fmt: skip

    def item(image: int) -> Iterator[RawItem]:
        refs, image_id, expressions, drops = by_image[image], f"coco_{image}", [], []
        boxes: dict[int, tuple[int, dict[str, Any]]] = {}
        for ref in refs:
            matching = annotations[ref["ann_id"]]
            if not matching:
                drops.append(Drop("unknown object", image_id, f"reference {ref['ref_id']}: {ref['ann_id']}"))
                continue
            x, y, width, height = matching[0]["bbox"]
            box = {"box": [x, y, x + width, y + height], "id": ref["ann_id"]}
            boxes.setdefault(ref["ann_id"], (len(boxes), box))
            number = boxes[ref["ann_id"]][0]
            expressions += [_expression(sentence, number, root_phrase) for sentence in ref["sentences"]]
        record = {"image_id": image_id, "source": (request.variant or VARIANTS[0]).partition("-")[0],
                  "boxes": [box for _, box in boxes.values()], "expressions": expressions}  # fmt: skip
        raw_image = coco_folder.coco_image(request, image, "train2014")
        yield RawItem(record, (raw_image,), sizes.get(image), tuple(drops))

    yield from annotations.malformed("coco")
    yield from each(by_image, item, "coco")


def _expression(sentence: dict[str, Any], box: int, root_phrase: Callable[[str], Span]) -> dict[str, Any]:
    text = clean_text(sentence["sent"])
    start, end = root_phrase(text)
    span = {"span": [[start, end]]} if start < end else {}
    return {"text": text, "box": box, "id": sentence["sent_id"], **span}
