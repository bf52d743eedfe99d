"""Where COCO's images lie and what they are called, in every layout in use."""

from __future__ import annotations

import re
from pathlib import Path

from fiber.data.convert.items import RawImage, Request, image_in

_NAME = re.compile(r"(?:COCO_(train2014|val2014|test2014|test2015)_)?(\d{12})(?:_\d+)?\.jpg")


def number(file_name: str) -> int:
    """The image id in a file name of 2014 or 2017: both number the same images. Raises ValueError."""
    match = _NAME.fullmatch(Path(file_name).name)
    if match is None:
        raise ValueError(f"{file_name!r} is not a COCO file name")
    return int(match[2])


def coco_image(request: Request, image: int, subset: str) -> RawImage:
    """COCO image ``image`` of ``subset`` ("train2014", "val2017", ...), under its name of either year.

    Looked for in --images, else in RAW/SUBSET, RAW/images/SUBSET and RAW/coco/SUBSET; images of 2014 also in the
    folders of 2017, which hold the same ones.
    """
    plain, long = f"{image:012d}.jpg", f"COCO_{subset}_{image:012d}.jpg"
    if request.images is not None:
        return image_in((request.images, request.images / subset), long, plain)
    roots = (request.raw, request.raw / "images", request.raw / "coco")
    official = long if subset.endswith(("2014", "2015")) else plain
    paths = list(image_in([root / subset for root in roots], official).paths)
    if subset.endswith("2014"):
        others = ("train2017", "val2017")
        paths += image_in([root / other for root in roots for other in others], plain).paths
    return RawImage(tuple(paths))
