"""LVIS v1 (and v0.5): boxes of 1,203 categories on COCO images, with the categories known to be absent.

minival is the part of val whose images are in COCO val2017 (4,809): LVIS val overlaps COCO's training images.
"""

from __future__ import annotations

from typing import Any

from fiber.data.convert import coco_folder, coco_format
from fiber.data.convert.items import RawDataset, RawImage, Request, existing
from fiber.data.convert.json_stream import iter_array

SPLITS = ("train", "val", "minival")

LICENCE = "annotations CC-BY-4.0 (LVIS); images: COCO, terms of Flickr"


def read(request: Request) -> RawDataset:
    """One record per image, with negative and not exhaustively annotated categories."""
    part = "val" if request.split == "minival" else request.split
    names = [f"lvis_v1_{part}.json", f"lvis_v0.5_{part}.json"]
    places = [folder / name for name in names for folder in (request.raw, request.raw / "annotations")]
    path = existing([request.annotations] if request.annotations else places, names[0])
    classes = coco_format.categories(path)

    def wanted(image: dict[str, Any]) -> bool:
        return request.split != "minival" or _subset(image) == "val2017"

    items = coco_format.items(
        path,
        "lvis",
        {entry["id"] for entry in classes},
        lambda image: f"coco_{image['id']}",
        lambda image: _image(request, image),
        wanted,
    )
    provenance = {"converter": "lvis", "file": path.name, "bytes": path.stat().st_size}
    listed = (image for image in iter_array(path, "images") if isinstance(image, dict) and "coco_url" in image)
    total = sum(map(wanted, listed))
    return RawDataset("lvis", request.split, LICENCE, provenance, items, total, categories=classes)


def _subset(image: dict[str, Any]) -> str:
    """COCO folder of an image; v1 tells it by URL only (.../val2017/000000000139.jpg)."""
    return image["coco_url"].split("/")[-2]


def _image(request: Request, image: dict[str, Any]) -> RawImage:
    newer = coco_folder.coco_image(request, image["id"], _subset(image)).paths
    older = tuple(
        path
        for subset in ("train2014", "val2014")
        for path in coco_folder.coco_image(request, image["id"], subset).paths
    )
    return RawImage(newer + older)
