"""COCO detection: instances_*.json of 2017 (default) or 2014; category ids stay COCO's (1..90 with gaps).

Test sets (image_info_test-dev2017.json, image_info_test2017.json) have images and categories but no boxes: an
evaluation writes the server's file for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert import coco_folder, coco_format
from fiber.data.convert.items import Drop, RawDataset, RawItem, Request, each, existing
from fiber.data.convert.json_stream import count_array, iter_array

SPLITS = ("train", "val", "test-dev", "test")
VARIANTS = ("2017", "2014")

LICENCE = "annotations CC-BY-4.0 (COCO consortium); images: terms of Flickr and of each photographer"


def read(request: Request) -> RawDataset:
    """One record per image, crowd regions marked, images without objects kept."""
    secret = request.split.startswith("test")
    name = f"{'image_info' if secret else 'instances'}_{request.split}{request.variant}.json"
    places = [request.raw / "annotations" / name, request.raw / name]
    path = existing([request.annotations] if request.annotations else places, f"the file {name}")
    classes = coco_format.categories(path)
    provenance = {"converter": "coco_detection", "file": path.name, "bytes": path.stat().st_size}
    if secret:
        items: Iterator = _images(path, request)
    else:
        subset = f"{request.split}{request.variant}"
        items = coco_format.items(
            path,
            "coco",
            {entry["id"] for entry in classes},
            lambda image: f"coco_{image['id']}",
            lambda image: coco_folder.coco_image(request, image["id"], subset),
        )
    total = count_array(path, "images")
    return RawDataset("coco_detection", request.split, LICENCE, provenance, items, total, categories=classes)


def _images(path: Path, request: Request) -> Iterator[RawItem | Drop]:
    """Records without the field "boxes": what they are is not known. Both test sets lie in test2017."""

    def item(image: dict[str, Any]) -> Iterator[RawItem]:
        record = {"image_id": f"coco_{image['id']}", "source": "coco"}
        yield RawItem(record, (coco_folder.coco_image(request, image["id"], f"test{request.variant}"),))

    return each(iter_array(path, "images"), item, "coco")
