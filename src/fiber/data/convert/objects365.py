"""Objects365: the original COCO-style JSON (v1, v2) or the TSV files of GLIP.

JSON: zhiyuan_objv2_*.json, images in patch folders. TSV: images.tsv (base64) with train.label.tsv next to it; there
boxes are corners, and categories come from object365_vgoiv6_class2ind.json or, without it, from the labels.

Class names are words of captions, which the text tower knows in lower case and well spelled: "Person", "Noddles"
become "person", "noodles". dataset.json keeps the original name of each class that changes (`original_name`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fiber.data.convert import coco_format
from fiber.data.convert.items import ConversionError, Drop, RawDataset, RawImage, RawItem, Request, existing, image_in
from fiber.data.convert.json_stream import count_array, load, open_text
from fiber.data.records import clean_text

SPLITS = ("train", "val")
VARIANTS = ("json", "tsv")

MISSPELLED = {
    "bakset": "basket",
    "ballon": "balloon",
    "billards": "billiards",
    "buttefly": "butterfly",
    "campel": "camel",
    "dinning table": "dining table",
    "extention cord": "extension cord",
    "french": "french horn",
    "hamimelon": "hami melon",
    "hotair ballon": "hot air balloon",
    "moniter/tv": "monitor/tv",
    "mushroon": "mushroom",
    "noddles": "noodles",
    "table teniis paddle": "table tennis paddle",
    "tape measur/ ruler": "tape measure/ruler",
}
"""Names of version 2 in lower case, as they are and as they should be."""

LICENCE = "annotations CC-BY-4.0 (Objects365); images: terms of Flickr, academic use"


def read(request: Request) -> RawDataset:
    """One record per image."""
    return _read_json(request) if request.variant == "json" else _read_tsv(request)


def _read_json(request: Request) -> RawDataset:
    names = [f"{stem}_{request.split}.json" for stem in ("zhiyuan_objv2", "objects365", "zhiyuan_objv1")]
    folders = (request.raw / "annotations", request.raw / request.split, request.raw)
    paths = [folder / name for folder in folders for name in names]
    path = existing([request.annotations] if request.annotations else paths, names[0])
    classes = [_category(entry["id"], entry["name"]) for entry in coco_format.categories(path)]
    items = coco_format.items(
        path,
        "objects365",
        {entry["id"] for entry in classes},
        lambda image: _image_id(image["file_name"]),
        lambda image: _image(request, image["file_name"]),
    )
    provenance = {"converter": "objects365", "variant": "json", "file": path.name, "bytes": path.stat().st_size}
    total = count_array(path, "images")
    return RawDataset("objects365", request.split, LICENCE, provenance, items, total, categories=classes)


def _category(number: int, name: str) -> dict[str, Any]:
    """{"id", "name", "original_name"?}."""
    words = _words(name)
    return {"id": number, "name": words, **({} if words == name else {"original_name": name})}


def _words(name: str) -> str:
    lower = clean_text(name.lower())
    return MISSPELLED.get(lower, lower)


def _image_id(file_name: str) -> str:
    return f"objects365_{Path(file_name).stem.removeprefix('objects365_')}"


def _image(request: Request, file_name: str) -> RawImage:
    """The JSON says images/v1/patch8/NAME; unpacked, images are in SPLIT/patch8/, patch8/ or images/SPLIT/."""
    parts = Path(file_name).parts
    short = "/".join(parts[-2:])
    roots = [request.images] if request.images else [
        request.raw / request.split, request.raw / "images" / request.split, request.raw / "images", request.raw
    ]  # fmt: skip
    return image_in(roots, short, parts[-1], file_name)


def _read_tsv(request: Request) -> RawDataset:
    raw, split = request.raw, request.split
    labels = existing(
        [request.annotations] if request.annotations else [raw / f"{split}.label.tsv"], "the label file"
    )
    images = existing([request.images] if request.images else [raw / "images.tsv", raw / f"{split}.images.tsv"],
                      "the image file")  # fmt: skip
    offsets = existing([images.with_suffix(".lineidx")], "the line index of the image file")
    classes = _tsv_classes(raw, labels)
    provenance = {"converter": "objects365", "variant": "tsv", "file": labels.name, "bytes": labels.stat().st_size}
    items = _tsv_items(labels, images, offsets, {entry["name"]: entry["id"] for entry in classes})
    with open_text(offsets) as lines:
        total = sum(1 for _ in lines)
    return RawDataset("objects365", split, LICENCE, provenance, items, total, categories=classes)


def _tsv_classes(raw: Path, labels: Path) -> list[dict[str, Any]]:
    listed = raw / "object365_vgoiv6_class2ind.json"
    if listed.exists():
        unique = {_words(name): (number, name) for name, number in reversed(load(listed).items())}
        return [_category(*entry) for entry in sorted(unique.values())]  # of two spellings the first one's id
    names = {_words(entry["class"]): entry["class"] for _, entries in _rows(labels) for entry in entries}
    return [_category(number, names[words]) for number, words in enumerate(sorted(names), 1)]


def _rows(labels: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    with open_text(labels) as lines:
        for number, line in enumerate(lines, 1):
            key, _, text = line.rstrip("\n").partition("\t")
            try:
                yield key, json.loads(text)
            except json.JSONDecodeError as error:
                raise ConversionError(f"{labels}, line {number}: broken label: {error}") from None


def _tsv_items(labels: Path, images: Path, offsets: Path, ids: dict[str, int]) -> Iterator[RawItem | Drop]:
    """Row i of both files is one image; `lineidx` holds the byte offset of every row of the image file."""
    with open_text(offsets) as offset_lines:
        for row, offset in zip_longest(_rows(labels), offset_lines):
            if row is None or offset is None:
                raise ConversionError(f"{labels} and {offsets} have different numbers of rows")
            entries, image_id = row[1], _image_id(row[0])
            labels_of = [(entry, ids.get(_words(entry["class"]))) for entry in entries]
            drops = [Drop("unknown category", image_id, e["class"]) for e, label in labels_of if label is None]
            boxes = [{"box": e["rect"], "category": label} for e, label in labels_of if label is not None]
            raw_image = RawImage((str(images),), int(offset), line=True)
            record = {"image_id": image_id, "source": "objects365", "boxes": boxes}
            yield RawItem(record, (raw_image,), drops=tuple(drops))
