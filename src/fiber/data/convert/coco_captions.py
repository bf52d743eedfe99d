"""COCO captions: Karpathy's split file (default) or the captions_*.json of 2014 and 2017.

Karpathy's train, val, test and restval stay apart; the papers train on train + restval (FIBER: train + val).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert import coco_folder, karpathy
from fiber.data.convert.items import ConversionError, Drop, RawDataset, RawItem, Request, each, existing
from fiber.data.convert.json_stream import Grouped, count_array, iter_array

SPLITS = ("train", "restval", "val", "test")
VARIANTS = ("karpathy", "2014", "2017")

LICENCE = "annotations CC-BY-4.0 (COCO consortium); images: terms of Flickr and of each photographer"


def read(request: Request) -> RawDataset:
    """One record an image with all its captions."""
    raw, split = request.raw, request.split
    if request.variant == "karpathy":
        places = [raw / "karpathy" / "dataset_coco.json", raw / "dataset_coco.json"]
        path = existing([request.annotations] if request.annotations else places, "Karpathy's dataset_coco.json")
        items = karpathy.items(
            path,
            split,
            "coco",
            lambda entry: f"coco_{entry['cocoid']}",
            lambda entry: coco_folder.coco_image(request, entry["cocoid"], entry["filepath"]),
        )
        total = karpathy.count(path, split)
    else:
        if split not in ("train", "val") and request.annotations is None:
            raise ConversionError(f"captions of {split!r} are not published; only Karpathy's file has that split")
        places = [raw / "annotations" / f"captions_{split}{request.variant}.json"]
        path = existing([request.annotations] if request.annotations else places, "the captions file")
        items, total = _plain(path, request), count_array(path, "images")
    provenance = {"converter": "coco_captions", "variant": request.variant, "file": path.name,
                  "bytes": path.stat().st_size}  # fmt: skip
    return RawDataset("coco_captions", split, LICENCE, provenance, items, total)


def _plain(path: Path, request: Request) -> Iterator[RawItem | Drop]:
    captions = Grouped(path, "annotations", lambda entry: entry["image_id"])
    subset = f"{request.split}{request.variant}"

    def item(image: dict[str, Any]) -> Iterator[RawItem]:
        texts = [{"text": entry.get("caption")} for entry in captions[image["id"]]]
        record = {"image_id": f"coco_{image['id']}", "source": "coco", "captions": texts}
        yield RawItem(record, (coco_folder.coco_image(request, image["id"], subset),))

    yield from captions.malformed("coco")
    yield from each(iter_array(path, "images"), item, "coco")
