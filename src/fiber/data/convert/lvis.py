"""LVIS v1 (and v0.5): boxes of 1,203 categories on COCO pictures, with the categories known to be absent.

minival is the part of val whose pictures are in COCO val2017 (4,809): LVIS val overlaps COCO's training pictures.
"""

from __future__ import annotations

from typing import Any

from fiber.data.convert import coco_folder, coco_format
from fiber.data.convert.bigjson import iter_array
from fiber.data.convert.items import Picture, Request, Source, existing

SPLITS = ("train", "val", "minival")

LICENCE = "annotations CC-BY-4.0 (LVIS); pictures: COCO, terms of Flickr"


def read(request: Request) -> Source:
    """One record a picture, with negative and not exhaustively annotated categories."""
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
        lambda image: _picture(request, image),
        wanted,
    )
    provenance = {"converter": "lvis", "file": path.name, "bytes": path.stat().st_size}
    total = sum(map(wanted, iter_array(path, "images")))
    return Source("lvis", request.split, LICENCE, provenance, items, total, categories=classes)


def _subset(image: dict[str, Any]) -> str:
    """COCO folder of a picture; v1 tells it by URL only (.../val2017/000000000139.jpg)."""
    return image["coco_url"].split("/")[-2]


def _picture(request: Request, image: dict[str, Any]) -> Picture:
    newer = coco_folder.picture(request, image["id"], _subset(image)).paths
    older = tuple(
        path
        for subset in ("train2014", "val2014")
        for path in coco_folder.picture(request, image["id"], subset).paths
    )
    return Picture(newer + older)
