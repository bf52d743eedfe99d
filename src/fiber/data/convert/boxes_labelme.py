"""One's own boxes in labelme's format: a JSON file beside each image, with rectangles and outlines."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert.boxes_coco import SHAPES, head_of, size_of
from fiber.data.convert.class_names import Classes, by_name
from fiber.data.convert.file_names import FileNames
from fiber.data.convert.image_folder import ImageFolder
from fiber.data.convert.items import ConversionError, Drop, RawItem, Request
from fiber.data.convert.json_stream import NOT_UTF8
from fiber.data.convert.splits import SplitFolder, parts_of

NAMED = True
Place = list[SplitFolder]
_AREAS = ("rectangle", "polygon", "circle", "mask", "rotation", "oriented_rectangle")


def _is_json(name: str) -> bool:
    return name.lower().endswith(".json")


def places(request: Request) -> dict[str, Place]:
    """split -> folders of JSON files; {} where they are not labelme's."""
    whole = SplitFolder(request.raw)
    return parts_of(request.raw, _is_json, _is_labelme) or ({"train": [whole]} if _is_labelme(whole) else {})


def _is_labelme(part: SplitFolder) -> bool:
    for path in itertools.islice(part.files(_is_json), 3):
        head = head_of(Path(path))
        if '"_via_' in head:
            raise ConversionError(f"{path}: VIA's format; export it as COCO (Annotation, Export Annotations)")
        if SHAPES.search(head):
            return True
    return False


def described(place: Place) -> str:
    """The place, for people."""
    return ", ".join(part.described("/*.json") for part in place)


def paths(place: Place) -> Iterator[tuple[str, str]]:
    """(path of a JSON file, NAME/INNER of it as of `FileNames.find_of`)."""
    for part in place:
        for path in part.files(_is_json):
            yield path, f"{part.path.name}/{Path(path).relative_to(part.path).with_suffix('').as_posix()}"


def classes(request: Request, found: dict[str, Place]) -> Classes:
    """All labels of areas in the files of all splits, in alphabetical order: the format has no list of them."""
    names, problem = set(), ""
    for path, _ in (entry for place in found.values() for entry in paths(place)):
        content = _load(path)
        if isinstance(content, str):
            problem = problem or content
        if isinstance(content, dict):
            names |= {_label(shape) for shape in _shapes(content) if _box(shape) is not None}
    if problem and not names:
        raise ConversionError(f"{problem}; no file here can be read")
    return [{"id": i, "name": name} for i, name in enumerate(sorted(name for name in names if name), 1)]


def items(request: Request, place: Place, name: str, known: Classes) -> tuple[Iterator[RawItem | Drop], int]:
    """(items of a split, their number)."""
    raw = request.raw
    roots = [request.images] if request.images else [*(part.path for part in place), raw, raw / "images"]
    divided = len(places(request)) > 1
    folder = ImageFolder(roots, request.images or raw, request.split if divided else None)
    return _items(place, folder, name, by_name(known)), sum(1 for _ in paths(place))


def _items(place: Place, folder: ImageFolder, source: str, ids: dict[str, int]) -> Iterator[RawItem | Drop]:
    numbers = itertools.count(1)
    listed = FileNames(own for _, own in paths(place))
    for path, own in paths(place):
        image_id = f"{source}_{own if sum(not part.left_out for part in place) > 1 else own.partition('/')[2]}"
        content = _load(path)
        if not isinstance(content, dict) or "shapes" not in content:
            detail = content if isinstance(content, str) else f"{path}: no shapes"
            yield Drop("annotation file broken", image_id, detail)
            continue
        boxes: list[dict[str, Any]] = []
        drops: list[Drop] = []
        for number, shape in enumerate(_shapes(content)):
            label, box = _label(shape), _box(shape)
            detail = f"shape {number}: {shape.get('shape_type')} {label!r}"
            if box is None:
                drops.append(Drop("shape without area", image_id, detail))
            elif label not in ids:
                drops.append(Drop("unknown category", image_id, detail))
            else:
                boxes.append({"box": box, "category": ids[label], "id": next(numbers)})
        size = size_of(content.get("imageWidth"), content.get("imageHeight"))
        image = listed.find_of(folder, path, own, str(content.get("imagePath") or ""), trusted=True)
        record = {"image_id": image_id, "source": source, "boxes": boxes}
        yield RawItem(record, (image,), size, tuple(drops))


def _load(path: str) -> Any:
    """The content of a file, or why it has none."""
    try:
        return json.loads(Path(path).read_bytes())
    except UnicodeDecodeError as error:
        return f"{path}: {NOT_UTF8}: {error}"
    except (OSError, ValueError, RecursionError) as error:
        return f"{path}: {error}"


def _shapes(content: dict[str, Any]) -> list[dict[str, Any]]:
    shapes = content.get("shapes")
    return [shape for shape in shapes if isinstance(shape, dict)] if isinstance(shapes, list) else []


def _label(shape: dict[str, Any]) -> str:
    """The class; "" where there is none."""
    label = shape.get("label")
    return "" if label is None else str(label).strip()


def _box(shape: dict[str, Any]) -> list[float] | None:
    """The box around a shape; None for points and lines. A circle is its center and a point on it."""
    kind = shape.get("shape_type") or "polygon"
    try:
        points = [(float(x), float(y)) for x, y in shape.get("points") or ()]
    except (TypeError, ValueError, OverflowError):
        return None
    if kind not in _AREAS or len(points) < 2 or not all(math.isfinite(side) for point in points for side in point):
        return None
    if kind == "circle":
        (x, y), radius = points[0], math.dist(points[0], points[1])
        return [x - radius, y - radius, x + radius, y + radius]
    across, down = zip(*points, strict=True)
    return [min(across), min(down), max(across), max(down)]
