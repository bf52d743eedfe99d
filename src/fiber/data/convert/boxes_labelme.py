"""One's own boxes in labelme's format: a JSON file beside each image, with rectangles and outlines."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert.boxes_coco import head_of, size_of
from fiber.data.convert.class_names import Classes, by_name
from fiber.data.convert.image_folder import ImageFolder
from fiber.data.convert.items import ConversionError, Drop, RawItem, Request
from fiber.data.convert.json_stream import NOT_UTF8
from fiber.data.convert.splits import files, folders_of

NAMED = True
Place = Path
_AREAS = ("rectangle", "polygon", "circle", "mask", "rotation", "oriented_rectangle")


def _is_json(name: str) -> bool:
    return name.lower().endswith(".json")


def places(request: Request) -> dict[str, Place]:
    """split -> folder of JSON files; {} where they are not labelme's."""
    parts = {split: paths[0] for split, paths in folders_of(request.raw).items() if _is_labelme(paths[0])}
    return parts or ({"train": request.raw} if _is_labelme(request.raw) else {})


def _is_labelme(folder: Path) -> bool:
    for path in itertools.islice(files(folder, _is_json), 3):
        head = head_of(Path(path))
        if '"_via_' in head:
            raise ConversionError(f"{path}: VIA's format; export it as COCO (Annotation, Export Annotations)")
        if '"shapes"' in head:
            return True
    return False


def described(place: Place) -> str:
    """The place, for people."""
    return f"{place.name}/*.json"


def classes(request: Request, found: dict[str, Place]) -> Classes:
    """All labels of areas in the files of all splits, in alphabetical order: the format has no list of them."""
    names, problem = set(), ""
    for path in (path for place in found.values() for path in files(place, _is_json)):
        content = _load(path)
        if isinstance(content, str):
            problem = problem or content
        if isinstance(content, dict):
            names |= {str(shape.get("label", "")).strip() for shape in _shapes(content) if _box(shape) is not None}
    if problem and not names:
        raise ConversionError(f"{problem}; no file here can be read")
    return [{"id": i, "name": name} for i, name in enumerate(sorted(name for name in names if name), 1)]


def items(request: Request, place: Place, name: str, known: Classes) -> tuple[Iterator[RawItem | Drop], int]:
    """(items of a split, their number)."""
    roots = [request.images] if request.images else [place, request.raw, request.raw / "images"]
    return _items(place, ImageFolder(roots), name, by_name(known)), sum(1 for _ in files(place, _is_json))


def _items(place: Path, folder: ImageFolder, source: str, ids: dict[str, int]) -> Iterator[RawItem | Drop]:
    numbers = itertools.count(1)
    for path in files(place, _is_json):
        stem = Path(path).relative_to(place).with_suffix("").as_posix()
        image_id = f"{source}_{stem}"
        content = _load(path)
        if not isinstance(content, dict) or "shapes" not in content:
            detail = content if isinstance(content, str) else f"{path}: no shapes"
            yield Drop("annotation file broken", image_id, detail)
            continue
        boxes: list[dict[str, Any]] = []
        drops: list[Drop] = []
        for number, shape in enumerate(_shapes(content)):
            label, box = str(shape.get("label", "")).strip(), _box(shape)
            detail = f"shape {number}: {shape.get('shape_type')} {label!r}"
            if box is None:
                drops.append(Drop("shape without area", image_id, detail))
            elif label not in ids:
                drops.append(Drop("unknown category", image_id, detail))
            else:
                boxes.append({"box": box, "category": ids[label], "id": next(numbers)})
        size = size_of(content.get("imageWidth"), content.get("imageHeight"))
        image = folder.find(str(content.get("imagePath") or stem))
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


def _box(shape: dict[str, Any]) -> list[float] | None:
    """The box around a shape; None for points and lines. A circle is its center and a point on it."""
    kind = shape.get("shape_type") or "polygon"
    try:
        points = [(float(x), float(y)) for x, y in shape.get("points") or ()]
    except (TypeError, ValueError):
        return None
    if kind not in _AREAS or len(points) < 2 or not all(math.isfinite(side) for point in points for side in point):
        return None
    if kind == "circle":
        (x, y), radius = points[0], math.dist(points[0], points[1])
        return [x - radius, y - radius, x + radius, y + radius]
    across, down = zip(*points, strict=True)
    return [min(across), min(down), max(across), max(down)]
