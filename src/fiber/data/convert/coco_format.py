"""Detection annotations in COCO's JSON format, of any data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert.items import ConversionError, Drop, RawImage, RawItem
from fiber.data.convert.json_stream import Grouped, iter_array

Entry = dict[str, Any]


def categories(path: Path) -> list[Entry]:
    """[{"id", "name", "frequency"?}] as in the file. Raises ConversionError for repeated ids."""
    found = [
        {key: entry[key] for key in ("id", "name", "frequency") if key in entry}
        for entry in iter_array(path, "categories")
    ]
    ids = [entry["id"] for entry in found]
    if len(set(ids)) < len(ids):
        raise ConversionError(f"{path}: category ids repeat: {sorted(i for i in set(ids) if ids.count(i) > 1)[:5]}")
    return found


def items(
    path: Path,
    source: str,
    known: set[int],
    image_id: Callable[[Entry], str],
    raw_image: Callable[[Entry], RawImage],
    keep: Callable[[Entry], bool] = lambda image: True,
) -> Iterator[RawItem | Drop]:
    """One item an entry of `images`, with its boxes (none is an annotation too: looked at, nothing found).

    known: category ids; an annotation of another category is dropped.
    """
    annotations = Grouped(path, "annotations", lambda entry: entry["image_id"])
    met = 0
    for image in iter_array(path, "images"):
        met += image["id"] in annotations
        if not keep(image):
            continue
        name, boxes, drops = image_id(image), [], []
        for entry in annotations[image["id"]]:
            if entry["category_id"] not in known:
                drops.append(
                    Drop("unknown category", name, f"{entry['category_id']} of annotation {entry.get('id')}")
                )
            else:
                boxes.append(_box(entry))
        record: dict[str, Any] = {"image_id": name, "source": source, "boxes": boxes}
        for field, key in (("negative_categories", "neg_category_ids"),
                           ("not_exhaustive_categories", "not_exhaustive_category_ids")):  # fmt: skip
            if image.get(key):
                record[field] = image[key]
        size = (int(image["width"]), int(image["height"])) if "width" in image and "height" in image else None
        yield RawItem(record, (raw_image(image),), size, tuple(drops))
    if met < len(annotations):
        yield Drop("annotations of an unlisted image", source, f"{len(annotations) - met} image ids not in 'images'")


def _box(entry: Entry) -> Entry:
    x, y, width, height = entry["bbox"]
    box: Entry = {"box": [x, y, x + width, y + height], "category": entry["category_id"]}
    if entry.get("iscrowd"):
        box["crowd"] = True
    for key in ("area", "id"):
        if key in entry:
            box[key] = entry[key]
    return box
