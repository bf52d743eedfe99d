"""One's own boxes in COCO's format: the JSON of each split, wherever tools put it, and where its images lie."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert import coco_format
from fiber.data.convert.class_names import Classes
from fiber.data.convert.file_names import FileNames
from fiber.data.convert.image_folder import ImageFolder
from fiber.data.convert.items import ConversionError, Drop, RawItem, Request, existing
from fiber.data.convert.json_stream import count_array, has_array, iter_array
from fiber.data.convert.splits import files_of, folders_of, own_split, split_of, subfolders

NAMED = False
Place = Path
_HEAD = 1 << 16  # bytes of a file that tell what it is
SHAPES = re.compile(r'"shapes"\s*:')  # the key of labelme's files; a class may be called so
_PREFERRED = ("without_background", "_annotations.coco", "instances", "annotations")


class NotRecognised(ConversionError):
    """No file has this format, and one that may have had it is broken: another format is looked for first."""


def head_of(path: Path) -> str:
    """The beginning of a text file."""
    with open(path, "rb") as file:
        return file.read(_HEAD).decode("latin-1")


def whole_number(text: str) -> int | None:
    """Of a number in a text, without what follows its point; None of what is none."""
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        return None


def size_of(width: Any, height: Any) -> tuple[int, int] | None:
    """(width, height) where a file gives whole numbers above 0."""
    whole = type(width) is int and type(height) is int
    return (width, height) if whole and min(width, height) > 0 and max(width, height) < 1 << 31 else None


def places(request: Request) -> dict[str, Place]:
    """split -> annotation file; {} where there is none in COCO's format."""
    raw = request.raw
    if request.annotations is not None:
        path = existing([request.annotations, raw / request.annotations], "the annotations")
        if path.suffix.lower() != ".json":
            return {}
        return {split_of(path.stem, path.parent.name) or "train": path}
    found: dict[str, list[Path]] = {}
    broken: dict[str, ConversionError] = {}
    lists: list[Path] = []
    folders = [raw, raw / "annotations"]
    folders += [folder for folder in subfolders(raw) if split_of(folder.name)]
    for path in (path for folder in folders for path in _json_files(folder)):
        split = own_split(path, raw) or "train"
        try:
            if head_of(path).lstrip("\xef\xbb\xbf \t\r\n").startswith("["):
                lists.append(path)
            elif has_array(path, "categories") and has_array(path, "images"):
                found.setdefault(split, []).append(path)
        except ConversionError as error:
            broken.setdefault(split, error)
    if lists and not found and not broken:
        raise NotRecognised(f"{lists[0]}: a list, where COCO has an object with images, annotations and categories; "
                            "let the tool (CreateML, Label Studio) export COCO")  # fmt: skip
    for split, problem in broken.items():
        if not found:
            raise NotRecognised(str(problem))
        if split not in found:
            raise problem
    return {split: _one(paths, split) for split, paths in found.items()}


def _json_files(folder: Path) -> list[Path]:
    """Those that may be COCO's. A folder of one file per image (labelme's) is left after the first."""
    out = []
    for path in files_of(folder, "*.json"):
        head = head_of(path)
        if SHAPES.search(head) or '"_via_' in head:
            return []
        if '"images"' in head or '"annotations"' in head or '"categories"' in head:
            out.append(path)
    return out


def _one(paths: list[Path], split: str) -> Path:
    for word in _PREFERRED:
        chosen = [path for path in paths if word in path.stem]
        if len(chosen) == 1:
            return chosen[0]
    if len(paths) == 1:
        return paths[0]
    raise ConversionError(
        f"several files may be the boxes of {split}: {', '.join(map(str, paths))[:300]}; name one by --annotations"
    )


def described(place: Place) -> str:
    """The place, for people."""
    return place.name


def classes(request: Request, found: dict[str, Place]) -> Classes:
    """Those of the split's file; they must be the same in all. Roboflow's empty super-category 0 goes."""
    every = {split: own_classes(path) for split, path in found.items()}
    first = next(iter(every))
    for split, entries in every.items():
        if {e["id"]: e["name"] for e in entries} != {e["id"]: e["name"] for e in every[first]}:
            raise ConversionError(
                f"{found[split]}: its categories are not those of {found[first]}; give both files the same"
            )
    return every[first]


def own_classes(path: Path) -> Classes:
    """The categories of a file; Roboflow writes the name of the whole project as category 0, which goes."""
    entries = coco_format.categories(path)
    parents = {entry.get("supercategory") for entry in iter_array(path, "categories")}
    zero = next((entry for entry in entries if entry["id"] == 0), None)
    if zero is not None and zero["name"] in parents:
        used = any(isinstance(e, dict) and e.get("category_id") == 0 for e in iter_array(path, "annotations"))
        if not used:
            return [entry for entry in entries if entry["id"] != 0]
    return entries


def items(request: Request, place: Place, name: str, known: Classes) -> tuple[Iterator[RawItem | Drop], int]:
    """(items of a split, their number)."""
    split = own_split(place, request.raw) or (request.split if len(places(request)) > 1 else None)
    near = [place.parent, place.parent / "images"] if place.parent.name != "annotations" else []
    own = folders_of(request.raw).get(split or "train", ())
    roots = [request.images] if request.images else [*near, *own, request.raw]
    listed = FileNames(coco_format.file_names(place))
    roots += [root / "images" for root in roots]
    folder = ImageFolder(roots, request.images or request.raw, split)
    found = coco_format.items(
        place,
        name,
        {entry["id"] for entry in known},
        lambda image: listed.image_id(name, coco_format.file_name(image)),
        lambda image: listed.find(folder, coco_format.file_name(image)),
    )
    return found, count_array(place, "images")
