"""One's own boxes in tables, one box per row (TensorFlow's and Roboflow's CSV, OpenImages, Kaggle's `bbox`, six
columns without a header), and in JSON lines, one image per row, with `objects` (Hugging Face's image folders)."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fiber.data.convert.box_form import JUDGED, BoxForm
from fiber.data.convert.boxes_coco import head_of, size_of, whole_number
from fiber.data.convert.by_image import ByImage
from fiber.data.convert.class_names import Classes, by_name
from fiber.data.convert.image_folder import ImageFolder, is_image
from fiber.data.convert.items import ConversionError, Drop, RawItem, Request, existing
from fiber.data.convert.json_stream import first_line
from fiber.data.convert.pair_rows import NAMES, SEPARATORS, SPLIT, Row, RowFile
from fiber.data.convert.splits import files_of, folders_of, own_split, split_of, subfolders

NAMED = True
_IMAGES = (*NAMES, "image_id", "imageid", "img_id")
_CLASSES = ("class", "class_name", "classname", "label", "label_name", "labelname", "category", "category_name",
            "labels", "categories", "class_id", "category_id", "name")  # fmt: skip
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"), ("x1", "y1", "x2", "y2"),
            ("x0", "y0", "x1", "y1"), ("left", "top", "right", "bottom"),
            ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"))  # fmt: skip
_SIDES = (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height"),
          ("bbox_x", "bbox_y", "bbox_width", "bbox_height"))  # fmt: skip
_BOX = ("bbox", "box")
ONE_CLASS = "object"
_ENDS = ("*.csv", "*.tsv", "*.jsonl", "*.ndjson")
_WITHIN, _NEAR = 1.01, 2  # boxes of shares of the image's sides end within the first, wrong ones soon after
_MOST = 0.99  # of the boxes; the others are clipped


@dataclass(frozen=True)
class BoxRows(RowFile):
    """A file of boxes. text: column (or key) of the class, None where there is but one, ONE_CLASS.

    box: the four columns of a box, or one that has all of them. sides: the last two are its width and height, else
    its other corner. size: the columns of the image's width and height.
    """

    box: tuple[int, ...] = ()
    sides: bool = False
    size: tuple[int, int] | None = None

    def _row(self, value: Any, where: str) -> Row | Drop:
        """(name of the image, [(class, corners or None, size, what the row has)]); without a box it has nothing."""
        if isinstance(value, Exception):
            return Drop("line malformed", where, str(value)[:200])
        if self.kind != "table":
            return self._objects(value, where)
        if len(value) != self.width:
            return Drop("row malformed", where, f"{len(value)} columns: {value!r:.100}")
        size = size_of(*(whole_number(value[side]) for side in self.size)) if self.size else None
        cells = [value[column].strip() for column in self.box]
        label = ONE_CLASS if self.text is None else value[self.text].strip()
        if not any(cells):
            return value[self.image], [("", None, size, "")]
        if len(cells) == 1:
            cells = cells[0].strip("[]() ").replace(",", " ").split()
        return value[self.image], [(label, corners(cells, self.sides), size, f"{where}: {cells} {label!r}")]

    def _objects(self, value: Any, where: str) -> Row | Drop:
        objects, name = (value.get("objects"), _first(value, NAMES)) if isinstance(value, dict) else (None, None)
        if objects is None or not isinstance(name, str):
            return Drop("entry malformed", where, f"no file_name, or no objects: {value!r:.200}")
        if isinstance(objects, dict):  # a list of each thing
            lists = {key: entry for key, entry in objects.items() if isinstance(entry, list)}
            pairs = list(itertools.zip_longest(_first(lists, _CLASSES) or (), _first(lists, _BOX) or ()))
        else:
            objects = [entry for entry in objects if isinstance(entry, dict)] if isinstance(objects, list) else []
            pairs = [(_first(entry, _CLASSES), _first(entry, _BOX)) for entry in objects]
        size = size_of(value.get("width"), value.get("height"))
        rows = []
        for label, value in pairs:
            box = corners(value, True) if isinstance(value, list) else None
            rows.append(("" if label is None else str(label).strip(), box, size, f"{where}: {value!r} {label!r}"))
        return name, rows or [("", None, size, "")]


Place = BoxRows


def _first(entry: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((entry[key] for key in keys if key in entry), None)


def corners(cells: Any, sides: bool) -> list[float] | None:
    """[x0, y0, x1, y1] of four numbers, the last two of which may be the sides; None of what is no box."""
    try:
        x, y, right, bottom = (float(cell) for cell in cells)
    except (TypeError, ValueError, OverflowError):
        return None
    box = [x, y, x + right, y + bottom] if sides else [x, y, right, bottom]
    return box if all(map(math.isfinite, box)) else None


def places(request: Request) -> dict[str, Place]:
    """split -> its rows; {} where no file has boxes. One file with a column `split` is divided by it."""
    raw = request.raw
    if request.annotations is not None:
        path = existing([request.annotations, raw / request.annotations], "the annotations")
        rows = recognised(path)
        return _divided(rows, split_of(path.stem, path.parent.name)) if rows else {}
    folders = [raw, raw / "annotations", *(folder for folder in subfolders(raw) if split_of(folder.name))]
    found: dict[str, list[BoxRows]] = {}
    for path in (path for folder in folders for end in _ENDS for path in files_of(folder, end)):
        if rows := recognised(path):
            names = (path.stem, path.parent.name) if path.parent != raw else (path.stem,)
            found.setdefault(split_of(*names) or "", []).append(rows)
    for split, several in found.items():
        if len(several) > 1:
            paths = ", ".join(str(rows.path) for rows in several)[:300]
            raise ConversionError(
                f"several files may be the boxes of {split or 'train'}: {paths}; name one by --annotations"
            )
    if set(found) == {""}:
        return _divided(found[""][0], None)
    return {split or "train": several[0] for split, several in found.items() if split or "train" not in found}


def _divided(rows: BoxRows, split: str | None) -> dict[str, Place]:
    named = rows.splits() if split is None else set()
    return {name: replace(rows, only=name) for name in named} or {split or "train": rows}


def recognised(path: Path) -> BoxRows | None:
    """How the boxes of a file are read; None where it has none."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        first = head_of(path).lstrip("\xef\xbb\xbf \r\n").partition("\n")[0]
        is_ours = '"objects"' in first and any(f'"{name}"' in first for name in NAMES)
        return BoxRows(path, "lines", None, None, split=SPLIT) if is_ours else None
    first = first_line(path)
    for separator in SEPARATORS.get(path.suffix.lower(), ""):
        cells = [cell.strip() for cell in next(csv.reader([first], delimiter=separator), [])]
        if rows := _columns(path, cells, separator):
            return rows
    return None


def _columns(path: Path, cells: list[str], separator: str) -> BoxRows | None:
    """Of a header; or of the first row of image, corners and class, without one."""
    if len(cells) == 6 and is_image(cells[0]) and (not any(cells[1:]) or corners(cells[1:5], False)):
        return BoxRows(path, "table", 0, 5, separator, 6, box=(1, 2, 3, 4))
    header = [cell.lower() for cell in cells]
    groups = [(group, False) for group in _CORNERS] + [((one,), True) for one in _BOX] + [(g, True) for g in _SIDES]
    box, sides = next(((group, sides) for group, sides in groups if set(group) <= set(header)), ((), False))
    image = next((header.index(name) for name in _IMAGES if name in header and name not in box), None)
    if image is None or not box:
        return None
    label = next((header.index(name) for name in _CLASSES if name in header), None)
    size = (header.index("width"), header.index("height")) if {"width", "height"} <= set(header) - set(box) else None
    return BoxRows(
        path, "table", image, label, separator, len(cells), 1, header.index(SPLIT) if SPLIT in header else None,
        box=tuple(header.index(name) for name in box), sides=sides, size=size,
    )  # fmt: skip


def described(place: Place) -> str:
    """The place, for people."""
    of = f" (split {place.only})" if place.only else ""
    one = f", no column of classes: all are called {ONE_CLASS}, unless --classes names them"
    return f"{place.path.name}{of}{one if place.text is None and place.kind == 'table' else ''}"


def classes(request: Request, found: dict[str, Place]) -> Classes:
    """All names in the rows of all splits: numbers in their order, others in alphabetical order."""
    names = {label for place in found.values() for row, _, _ in place.places() if not isinstance(row, Drop)
             for label, box, _, _ in row[1] if label and box}  # fmt: skip
    order = sorted(names)
    if all(name.isdecimal() for name in names):
        order.sort(key=lambda name: (len(name.lstrip("0")), name.lstrip("0")))
    return [{"id": i, "name": name} for i, name in enumerate(order, 1)]


def items(request: Request, place: Place, name: str, known: Classes) -> tuple[Iterator[RawItem | Drop], int]:
    """(items of a split, their number)."""
    raw, near = request.raw, place.path.parent
    roots = [request.images] if request.images else [near, near / "images", raw / "images", raw]
    split = place.only or own_split(place.path, raw) or (request.split if len(places(request)) > 1 else None)
    roots += folders_of(raw).get(split or "train", [])
    folder = ImageFolder(roots, request.images or raw, split)
    rows = ByImage(place)
    shares = _are_shares(place)
    if place.kind != "table" or place.sides:
        _check(rows, folder, shares)
    return _items(rows, folder, name, by_name(known), shares), len(rows)


def _check(rows: ByImage, folder: ImageFolder, shares: bool) -> None:
    """Raises ConversionError where boxes that should be [x, y, width, height] are corners."""
    form = BoxForm()
    for found in rows if not shares else ():
        if isinstance(found, Drop):
            continue
        name, entries, _, _ = found
        boxes = [[box[0], box[1], box[2] - box[0], box[3] - box[1]] for _, box, _, _ in entries if box]
        size = next((size for _, _, size, _ in entries if size), None)
        form.add(boxes, size, rows.names.find(folder, name) if boxes and size is None else None)
        if form.images >= JUDGED:
            break
    if (problem := form.problem()) is not None:
        raise ConversionError(f"{rows.rows.path}: {problem}")


def _are_shares(place: Place) -> bool:
    """Whether the boxes of a file lie within one pixel, so that they are shares of the image's sides (OpenImages): 99
    of 100, or half of them where the others end before the second pixel."""
    number = within = 0
    largest = 0.0
    for row in (row for row, _, _ in place.places() if not isinstance(row, Drop)):
        for end in (max(box) for _, box, _, _ in row[1] if box):
            number, within, largest = number + 1, within + (end <= _WITHIN), max(largest, end)
    return number > 0 and (within >= _MOST * number or (largest <= _NEAR and within * 2 >= number))


def _items(
    rows: ByImage, folder: ImageFolder, source: str, ids: dict[str, int], shares: bool
) -> Iterator[RawItem | Drop]:
    numbers = itertools.count(1)
    one = next(iter(ids)) if rows.rows.text is None and rows.rows.kind == "table" and len(ids) == 1 else None
    for found in rows:
        if isinstance(found, Drop):
            yield found
            continue
        name, entries, _, _ = found
        image_id = rows.names.image_id(source, name)
        boxes: list[dict[str, Any]] = []
        drops: list[Drop] = []
        for label, box, _, detail in entries:
            if not detail:
                continue
            label = one or label
            if box is None:
                drops.append(Drop("box malformed", image_id, detail[:200]))
            elif label not in ids:
                drops.append(Drop("unknown category", image_id, detail[:200]))
            else:
                boxes.append({"box": _share(box) if shares else box, "category": ids[label], "id": next(numbers)})
        size = next((size for _, _, size, _ in entries if size), None)
        record = {"image_id": image_id, "source": source, "boxes": boxes}
        yield RawItem(record, (rows.names.find(folder, name),), size, tuple(drops), fractions=shares)


def _share(box: list[float]) -> list[float]:
    """Corners -> [center x, center y, width, height]."""
    return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]]
