"""MDETR's grounding files: Flickr30k Entities, the mixed set (COCO and Visual Genome), RefCOCO/+/g.

Their `images` are (image, caption) pairs; here an image is one record with all its captions. In RefCOCO files a
caption is a referring expression with one box. Variants choose images of the mixed set by where they come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert import coco_folder
from fiber.data.convert.flickr30k import image as flickr_image
from fiber.data.convert.items import (
    ConversionError,
    Drop,
    RawDataset,
    RawImage,
    RawItem,
    Request,
    each,
    existing,
    image_in,
)
from fiber.data.convert.json_stream import Grouped
from fiber.data.convert.visual_genome import image_data

SPLITS = ("train", "val", "test", "testA", "testB", "minival")
VARIANTS = ("all", "vg", "coco")

LICENCE = "annotations: Flickr30k Entities, Visual Genome (CC-BY-4.0), RefCOCO; images: terms of Flickr"
VG_FOLDERS = ("gqa/images", "images", "VG_100K", "VG_100K_2", "images/VG_100K", "images/VG_100K_2")


def read(request: Request) -> RawDataset:
    """Needs --annotations FILE.json. ``split`` only names the result."""
    if request.annotations is None:
        raise ConversionError("mdetr_json needs --annotations FILE, e.g. final_flickr_separateGT_train.json")
    path = existing([request.annotations, request.raw / request.annotations], "the MDETR annotation file")
    entries = Grouped(path, "images", lambda entry: entry["file_name"])
    boxes = Grouped(path, "annotations", lambda entry: entry["image_id"])
    about, _ = image_data(request.raw)
    provenance = {"converter": "mdetr_json", "variant": request.variant, "file": path.name,
                  "bytes": path.stat().st_size, "image_data": bool(about)}  # fmt: skip
    items = _items(entries, boxes, about, request)
    return RawDataset(path.stem.replace(".", "_"), request.split, LICENCE, provenance, items, len(entries),
                      repeats=True)  # fmt: skip  # Visual Genome's and COCO's file of one photograph


def _items(entries: Grouped[str], boxes: Grouped[Any], about: dict, request: Request) -> Iterator[RawItem | Drop]:
    def item(file_name: str) -> Iterator[RawItem]:
        texts = entries[file_name]
        first = texts[0]
        origin = first.get("data_source") or _origin(first)
        if request.variant not in ("all", origin):
            return
        image_id, image = _image(file_name, origin, about, request)
        record: dict[str, Any] = {
            "image_id": image_id,
            "source": first.get("dataset_name", "mdetr"),
            "captions": [],
            "expressions": [],
            "boxes": [],
        }
        for entry in texts:
            matching = boxes[entry["id"]]
            numbers = [_box_number(record["boxes"], annotation) for annotation in matching]
            if str(entry.get("dataset_name", "")).startswith("refcoco"):
                record["expressions"] += _expressions(entry, matching, numbers)
            else:
                record["captions"].append(_caption(entry, matching, numbers))
        yield RawItem(record, (image,), (int(first["width"]), int(first["height"])))  # strings in the flickr files

    yield from entries.malformed("mdetr")
    yield from boxes.malformed("mdetr")
    yield from each(entries, item, "mdetr")


def _origin(entry: dict[str, Any]) -> str:
    return "coco" if entry["file_name"].startswith("COCO_") else str(entry.get("dataset_name", "vg"))


def _image(file_name: str, origin: str, about: dict, request: Request) -> tuple[str, RawImage]:
    """(image id, where)."""
    stem = Path(file_name).stem
    if origin == "coco":
        number = coco_folder.number(file_name)
        return f"coco_{number}", coco_folder.coco_image(request, number, file_name.split("_")[1])
    if origin == "flickr":
        return f"flickr_{stem}", flickr_image(request, file_name)
    identity = about[int(stem)][2] if stem.isdecimal() and int(stem) in about else f"vg_{stem}"
    roots = [request.images] if request.images else [request.raw / folder for folder in VG_FOLDERS]
    return identity, image_in(roots, file_name)


def _box_number(known: list[dict[str, Any]], annotation: dict[str, Any]) -> int:
    """Number of the annotation's box among the image's; captions of one image share equal boxes."""
    x, y, width, height = annotation["bbox"]
    box = [x, y, x + width, y + height]
    for number, entry in enumerate(known):
        if entry["box"] == box:
            return number
    known.append({"box": box})
    return len(known) - 1


def _expressions(entry: dict[str, Any], matching: list[dict[str, Any]], numbers: list[int]) -> list[dict[str, Any]]:
    expressions = []
    for annotation, number in zip(matching, numbers, strict=True):
        expression = {"text": entry["caption"], "box": number, "id": int(entry["id"])}
        if annotation.get("tokens_positive"):
            expression["span"] = annotation["tokens_positive"]
        expressions.append(expression)
    return expressions


def _caption(entry: dict[str, Any], matching: list[dict[str, Any]], numbers: list[int]) -> dict[str, Any]:
    """A phrase is a set of spans and the boxes that have it.

    In the Flickr files boxes of different phrases that overlap almost wholly were merged, spans and all; there every
    span is a phrase of its own (`tokens_positive_eval` lists them in order). In the mixed files the spans of a box
    belong together ("one man" as two tokens).
    """
    phrases: dict[tuple, list[int]] = {}
    for spans in entry.get("tokens_positive_eval", []):
        phrases[tuple(map(tuple, spans))] = []
    separate = entry.get("dataset_name") == "flickr"
    for annotation, number in zip(matching, numbers, strict=True):
        spans = tuple(map(tuple, annotation["tokens_positive"]))
        for key in ((span,) for span in spans) if separate else (spans,):
            phrases.setdefault(key, []).append(number)
    listed = [{"span": [list(s) for s in key], "boxes": sorted(set(boxes))} for key, boxes in phrases.items() if key]
    return {"text": entry["caption"], **({"phrases": listed} if listed else {})}
