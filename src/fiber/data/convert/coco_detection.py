"""COCO detection: instances_*.json of 2017 (default) or 2014; category ids stay COCO's (1..90 with gaps)."""

from __future__ import annotations

from fiber.data.convert import coco_folder, coco_format
from fiber.data.convert.items import RawDataset, Request, existing
from fiber.data.convert.json_stream import count_array

SPLITS = ("train", "val")
VARIANTS = ("2017", "2014")

LICENCE = "annotations CC-BY-4.0 (COCO consortium); images: terms of Flickr and of each photographer"


def read(request: Request) -> RawDataset:
    """One record per image, crowd regions marked, images without objects kept."""
    subset = f"{request.split}{request.variant}"
    places = [request.raw / "annotations" / f"instances_{subset}.json", request.raw / f"instances_{subset}.json"]
    path = existing([request.annotations] if request.annotations else places, "the instances file")
    classes = coco_format.categories(path)
    items = coco_format.items(
        path,
        "coco",
        {entry["id"] for entry in classes},
        lambda image: f"coco_{image['id']}",
        lambda image: coco_folder.coco_image(request, image["id"], subset),
    )
    provenance = {"converter": "coco_detection", "file": path.name, "bytes": path.stat().st_size}
    total = count_array(path, "images")
    return RawDataset("coco_detection", request.split, LICENCE, provenance, items, total, categories=classes)
