"""Detection annotations in COCO's JSON format, of any data set.

Files come from many tools, and one bad entry must not cost the rest: what cannot be used is left out, counted, and
listed with the id of its annotation. What is wrong with the whole file (categories, repeated image ids, boxes in
another form) is one clear error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fiber.data.convert.box_form import JUDGED, BoxForm
from fiber.data.convert.items import ConversionError, Drop, RawImage, RawItem
from fiber.data.convert.json_stream import Grouped, iter_array
from fiber.data.convert.masks import mask_box
from fiber.data.records import check_categories

Entry = dict[str, Any]

_SIDE = 1 << 31  # no image has a longer one


def categories(path: Path) -> list[Entry]:
    """[{"id", "name", "frequency"?}] as in the file; numbers as names become texts. Raises ConversionError naming
    the category that has no id or name, or an id like another's."""
    found = []
    for entry in iter_array(path, "categories"):
        if not isinstance(entry, dict):
            raise ConversionError(
                f'{path}: category {entry!r:.200} must be an object like {{"id": 1, "name": "cup"}}'
            )
        category = {key: entry[key] for key in ("id", "name", "frequency") if key in entry}
        name = category.get("name")
        if isinstance(name, (int, float)) and not isinstance(name, bool):
            category["name"] = str(name)
        found.append(category)
    try:
        check_categories(found)
    except ValueError as error:
        raise ConversionError(f"{path}: {error}") from None
    return found


def identity(value: Any) -> str:
    """An id in one form: 1, 1.0 and "1" are one, as the tools that mix them mean it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def file_names(path: Path) -> Iterator[str]:
    """The names of all images of a file; entries without one are passed over."""
    for image in iter_array(path, "images"):
        with suppress(KeyError, TypeError):
            yield file_name(image)


def file_name(image: Entry) -> str:
    """The name in an entry, with `/` between its parts. Raises KeyError where there is none."""
    name = image["file_name"]
    if not isinstance(name, (str, int, float)) or name == "":
        raise KeyError("file_name")
    return str(name).replace("\\", "/")


def items(
    path: Path,
    source: str,
    known: set[Any],
    image_id: Callable[[Entry], str],
    raw_image: Callable[[Entry], RawImage],
    keep: Callable[[Entry], bool] = lambda image: True,
) -> Iterator[RawItem | Drop]:
    """One item an entry of `images`, with its boxes (none is an annotation too: looked at, nothing found).

    known: category ids; an annotation of another category is dropped. Ids are compared as `identity` has them.
    Raises ConversionError: an image id comes twice; most boxes are in another form than COCO's.
    """
    annotations = Grouped(path, "annotations", image_of)
    _check(path, annotations, raw_image)
    yield from annotations.malformed(source)
    ids = {identity(category): category for category in known}
    taken: set[int] = set()  # files
    met = 0
    for image in iter_array(path, "images"):
        try:
            met += identity(image["id"]) in annotations
            if not keep(image):
                continue
            name, raw = image_id(image), raw_image(image)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield Drop("image entry malformed", source, f"{image!r:.200} ({type(error).__name__}: {error})")
            continue
        boxes: list[Entry] = []
        drops: list[Drop] = []
        if (file := hash((raw.paths, raw.offset))) in taken:
            yield Drop("file listed more than once", name, f"{image['file_name']} again, as image id {image['id']}")
            continue
        taken.add(file)
        for entry in annotations[identity(image["id"])]:
            _add_box(boxes, drops, entry, ids, name)
        record: dict[str, Any] = {"image_id": name, "source": source, "boxes": boxes}
        for field, key in (("negative_categories", "neg_category_ids"),
                           ("not_exhaustive_categories", "not_exhaustive_category_ids")):  # fmt: skip
            if image.get(key):
                record[field] = image[key]
        size = _size(image)
        if size is None and ("width" in image or "height" in image):
            drops.append(Drop("size not given", name, f"{image.get('width')!r} x {image.get('height')!r}", kept=True))
        yield RawItem(record, (raw,), size, tuple(drops))
    yield from of_unlisted(annotations, met, source)


def of_unlisted(annotations: Grouped[str], met: int, source: str) -> Iterator[Drop]:
    """What is said where `images` has but `met` of the image ids of annotations."""
    if (unlisted := len(annotations) - met) > 0:
        yield Drop("annotations of an unlisted image", source, f"{unlisted} image ids not in 'images'")


def image_of(entry: Entry) -> str:
    """The id of an annotation's image, as `identity` has it."""
    return identity(entry["image_id"])


def _add_box(boxes: list[Entry], drops: list[Drop], entry: Any, ids: dict[str, Any], name: str) -> None:
    """Appends the box of an annotation, or the reason why it has none."""
    category = identity(entry.get("category_id"))
    if category not in ids:
        detail = f"{entry.get('category_id')!r:.100} of annotation {entry.get('id')}"
        drops.append(Drop("unknown category", name, detail))
        return
    sides = bbox(entry)
    if sides is None:
        detail = f"annotation {entry.get('id')}: bbox {entry.get('bbox')!r:.100}, no outline or mask either"
        drops.append(Drop("box malformed", name, detail))
        return
    x, y, width, height = sides
    box: Entry = {"box": [x, y, x + width, y + height], "category": ids[category]}
    if entry.get("iscrowd") in (1, True, "1"):
        box["crowd"] = True
    area = entry.get("area")
    if type(area) in (int, float) and 0 <= area <= (width + 1) * (height + 1):  # a pixel of rounding
        box["area"] = area
    elif area is not None and min(width, height) > 0:
        detail = f"annotation {entry.get('id')}: area {area!r:.50} of a box of {width:g} x {height:g}, left out"
        drops.append(Drop("area not that of the box", name, detail, kept=True))
    if isinstance(entry.get("id"), (int, str)):
        box["id"] = entry["id"]
    boxes.append(box)


def bbox(entry: Entry) -> list[float] | None:
    """[x, y, width, height] of an annotation: its bbox, numbers or texts of numbers, else that of its polygons or its
    mask; None where there is neither. Values that are not finite stay: packing counts them."""
    sides = entry.get("bbox")
    if isinstance(sides, (list, tuple)) and len(sides) == 4:
        try:
            numbers = [float(side) for side in sides]
            return [side if type(side) is int else number for side, number in zip(sides, numbers, strict=True)]
        except (TypeError, ValueError, OverflowError):
            pass
    return mask_box(entry.get("segmentation"))


def _size(image: Entry) -> tuple[int, int] | None:
    try:
        width, height = int(image["width"]), int(image["height"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (width, height) if 0 < width < _SIDE and 0 < height < _SIDE else None


def twice(path: Path, image_id: Any) -> ConversionError:
    """The error of an image id that two images have: whose annotations are whose is not known."""
    return ConversionError(f"{path}: image id {image_id!r} comes twice in 'images': give each its own id")


def _check(path: Path, annotations: Grouped[str], raw_image: Callable[[Entry], RawImage]) -> None:
    """Raises ConversionError for a repeated image id, and where the boxes of the first images are in another form
    than COCO's."""
    form = BoxForm()
    ids: set[str] = set()
    for image in iter_array(path, "images"):
        key = identity(image["id"]) if isinstance(image, dict) and "id" in image else None
        if key is None:
            continue
        if key in ids:
            raise twice(path, image["id"])
        ids.add(key)
        if form.images < JUDGED and key in annotations:
            size, found = _size(image), None
            with suppress(KeyError, TypeError, ValueError, AttributeError):
                found = raw_image(image) if size is None else None
            form.add([sides for entry in annotations[key] if (sides := bbox(entry))], size, found)
    if len(annotations) and not any(key in annotations for key in ids):
        raise ConversionError(
            f"{path}: none of {len(annotations)} image ids of 'annotations' (such as {next(iter(annotations))!r}) is "
            f"among the {len(ids)} of 'images' (such as {next(iter(ids), None)!r})"
        )
    if (problem := form.problem()) is not None:
        raise ConversionError(f"{path}: {problem}")
