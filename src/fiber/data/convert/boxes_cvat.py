"""One's own boxes in CVAT's own XML ("CVAT for images 1.1"): one file for all images of a split."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from fiber.data.convert.boxes_coco import head_of, size_of, whole_number
from fiber.data.convert.class_names import Classes, by_name
from fiber.data.convert.file_names import FileNames
from fiber.data.convert.image_folder import ImageFolder, plain
from fiber.data.convert.items import ConversionError, Drop, RawItem, Request, existing
from fiber.data.convert.splits import files_of, folders_of, own_split, split_of, subfolders

NAMED = True
_SHAPES = ("box", "polygon", "polyline", "points", "ellipse", "mask", "cuboid", "skeleton")


@dataclass(frozen=True)
class ImagesOfFile:
    """A file, and which of its images: those of a subset, or all (None)."""

    path: Path
    subset: str | None = None

    def images(self) -> Iterator[Element]:
        """Its `image` elements, one in memory at a time."""
        for element in _elements(self.path, "image"):
            if self.subset is None or (split_of(element.get("subset", "")) or "train") == self.subset:
                yield element


def places(request: Request) -> dict[str, ImagesOfFile]:
    """split -> its file; {} where none is CVAT's. A file whose images name subsets is divided by them."""
    raw = request.raw
    if request.annotations is not None:
        path = existing([request.annotations, raw / request.annotations], "the annotations")
        return _divided(path) if _is_cvat(path) else {}
    folders = [raw, raw / "annotations", *(folder for folder in subfolders(raw) if split_of(folder.name))]
    found = [path for folder in folders for path in _files_in(folder)]
    if len(found) == 1 and not own_split(found[0], raw):
        return _divided(found[0])
    split: dict[str, ImagesOfFile] = {}
    for path in found:
        name = own_split(path, raw) or "train"
        if name in split:
            raise ConversionError(f"{path}: {split[name].path} is {name} already; name one by --annotations")
        split[name] = ImagesOfFile(path)
    return split


def _files_in(folder: Path) -> list[Path]:
    """CVAT's. A folder of one file per image (VOC's) is left after the first."""
    found = []
    for path in files_of(folder, "*.xml"):
        if _is_cvat(path):
            found.append(path)
        elif "<annotation>" in head_of(path):
            return []
    return found


def _is_cvat(path: Path) -> bool:
    """Whether a file is CVAT's. Raises ConversionError where it is of a video, whose frames are no images."""
    if path.suffix.lower() != ".xml" or not re.search(r"<annotations[\s>]", head := head_of(path)):
        return False
    if "<track " in head:
        raise ConversionError(f'{path}: of a video (tracks); let CVAT write "CVAT for images" or COCO')
    return True


def _divided(path: Path) -> dict[str, ImagesOfFile]:
    subsets = {split_of(image.get("subset", "")) or "train" for image in _elements(path, "image")}
    return (
        {split: ImagesOfFile(path, split) for split in subsets} if len(subsets) > 1 else {"train": ImagesOfFile(path)}
    )


def _elements(path: Path, tag: str) -> Iterator[Element]:
    """Those of one tag, whole; what was given is forgotten. Raises ConversionError where the file is broken."""
    try:
        parser = ElementTree.iterparse(path, events=("start", "end"))
        root = next(parser)[1]
        for event, element in parser:
            if event == "end" and element.tag == tag:
                yield element
            if event == "end" and element.tag == "image":
                root.clear()
    except (ElementTree.ParseError, LookupError, ValueError, StopIteration) as error:
        raise ConversionError(f"{path}: broken XML: {error}; export it once more") from None


def described(place: ImagesOfFile) -> str:
    """The place, for people."""
    return place.path.name + (f" (subset {place.subset})" if place.subset else "")


def classes(request: Request, found: dict[str, ImagesOfFile]) -> Classes:
    """The labels of the task in their order, then labels that only the images have, in alphabetical order."""
    paths = {place.path: None for place in found.values()}
    labels = (label for path in paths for label in _elements(path, "label") if label.find("parent") is None)
    listed = [label.findtext("name", "").strip() for label in labels]
    used = {_label(shape) for path in paths for image in _elements(path, "image") for shape in image}
    order = list(dict.fromkeys([*filter(None, listed), *sorted(filter(None, used))]))
    return [{"id": i, "name": name} for i, name in enumerate(order, 1)]


def _label(shape: Element) -> str:
    return shape.get("label", "").strip() if shape.tag in _SHAPES else ""


def items(request: Request, place: ImagesOfFile, name: str, known: Classes) -> tuple[Iterator[RawItem | Drop], int]:
    """(items of a split, their number)."""
    near = [place.path.parent, place.path.parent / "images"]
    roots = [request.images] if request.images else [*near, request.raw / "images", request.raw]
    split = place.subset or own_split(place.path, request.raw)
    split = split or (request.split if len(places(request)) > 1 else None)
    roots += folders_of(request.raw).get(split or "train", [])
    listed = FileNames(image.get("name", "") for image in place.images())
    folder = ImageFolder(roots, request.images or request.raw, split)
    return _items(place, listed, folder, name, by_name(known)), sum(1 for _ in place.images())


def _items(
    place: ImagesOfFile, listed: FileNames, folder: ImageFolder, source: str, ids: dict[str, int]
) -> Iterator[RawItem | Drop]:
    numbers = itertools.count(1)
    for image in place.images():
        name = image.get("name", "")
        if not plain(name):
            yield Drop("image without a name", source, f"{place.path.name}, image {image.get('id')!r}")
            continue
        image_id = listed.image_id(source, name)
        boxes: list[dict[str, Any]] = []
        drops: list[Drop] = []
        for shape in image:
            if not (label := _label(shape)):
                continue
            detail = f"{shape.tag} {label!r}"
            if (box := _box(shape)) is None:
                drops.append(Drop("shape without area", image_id, detail))
            elif label not in ids:
                drops.append(Drop("unknown category", image_id, detail))
            else:
                boxes.append({"box": box, "category": ids[label], "id": next(numbers)})
        size = size_of(*(whole_number(image.get(side, "")) for side in ("width", "height")))
        record = {"image_id": image_id, "source": source, "boxes": boxes}
        yield RawItem(record, (listed.find(folder, name),), size, tuple(drops))


def _box(shape: Element) -> list[float] | None:
    """The upright box around a shape; None where it has no area or numbers that are none."""
    try:
        if shape.tag == "box":
            corners = [float(shape.get(side, "")) for side in ("xtl", "ytl", "xbr", "ybr")]
            box = _turned(corners, float(shape.get("rotation") or 0))
        elif shape.tag == "ellipse":
            x, y, across, down = (float(shape.get(side, "")) for side in ("cx", "cy", "rx", "ry"))
            cos, sin = _direction(float(shape.get("rotation") or 0))
            wide, high = math.hypot(across * cos, down * sin), math.hypot(across * sin, down * cos)
            box = [x - wide, y - high, x + wide, y + high]
        elif shape.tag == "mask":
            left, top, width, height = (float(shape.get(side, "")) for side in ("left", "top", "width", "height"))
            box = [left, top, left + width, top + height]
        elif shape.tag == "polygon":
            points = [[float(side) for side in point.split(",")] for point in shape.get("points", "").split(";")]
            (left, right), (top, bottom) = ((min(side), max(side)) for side in zip(*points, strict=True))
            box = [left, top, right, bottom]
        else:
            return None
    except ValueError:
        return None
    return box if all(map(math.isfinite, box)) else None


def _turned(box: list[float], degrees: float) -> list[float]:
    """The upright box around one that is turned about its center."""
    if not degrees:
        return box
    cos, sin = _direction(degrees)
    x, y, wide, high = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]
    half_x, half_y = (wide * cos + high * sin) / 2, (wide * sin + high * cos) / 2
    return [x - half_x, y - half_y, x + half_x, y + half_y]


def _direction(degrees: float) -> tuple[float, float]:
    """(|cos|, |sin|)."""
    return abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
