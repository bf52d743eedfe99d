"""Your own boxes: COCO, VOC, YOLO, labelme, ODVG, CVAT or tables, guessed from the folder.

COCO      SRC/annotations/instances_train.json, SRC/train/_annotations.coco.json, or any JSON of that form
VOC       SRC/Annotations/*.xml, SRC/JPEGImages, SRC/ImageSets/Main/train.txt; or the XML beside the images
YOLO      SRC/data.yaml, SRC/images/train/*.jpg, SRC/labels/train/*.txt; SRC/train/images, ...; lists of files
labelme   a JSON file with the name of the image beside each image
ODVG      JSON lines {"filename", "detection" or "grounding"}
CVAT      the XML of "CVAT for images": one file, <annotations> with <image> and <box>
table     a CSV with one box per row, or JSON lines {"file_name", "objects": {"bbox", "categories"}} (Hugging Face)

Splits are called train, val and test by the names of files and folders; a set without them is train. An image of a
listed split without labels has no objects; one that an annotation file does not list is not in the set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiber.data.convert import (
    boxes_coco,
    boxes_cvat,
    boxes_labelme,
    boxes_odvg,
    boxes_table,
    boxes_voc,
    boxes_yolo,
)
from fiber.data.convert.class_names import renamed, without_match
from fiber.data.convert.items import ConversionError, RawDataset, Request

SPLITS = ("train", "val", "test")
OPTIONS = ("raw", "annotations", "images", "format", "classes")
LICENCE = "that of your images and annotations"

_READERS = {"coco": boxes_coco, "yolo": boxes_yolo, "cvat": boxes_cvat, "voc": boxes_voc, "odvg": boxes_odvg,
            "labelme": boxes_labelme, "table": boxes_table}  # fmt: skip
FORMATS = tuple(_READERS)
_TITLES = {"coco": "COCO", "yolo": "YOLO", "cvat": "CVAT", "voc": "VOC", "odvg": "ODVG", "labelme": "labelme",
           "table": "a table of boxes"}  # fmt: skip


@dataclass(frozen=True)
class _Found:
    """A format, and where each split lies, in the words of its reader."""

    form: str
    places: dict[str, Any]

    @property
    def there(self) -> list[str]:
        """The splits but those that the set names and does not have."""
        return [split for split, place in self.places.items() if place]


def splits(request: Request) -> tuple[str, list[str]]:
    """(one line that says what was recognised, the splits)."""
    found = _find(request)
    said = "; ".join(f"{split}: {_READERS[found.form].described(place)}" for split, place in found.places.items())
    guessed = "as told" if request.format else "guessed"
    return f"{request.raw}: {_TITLES[found.form]} ({guessed}); {said}", found.there


def read(request: Request) -> RawDataset:
    """One record per image of a split, with all its boxes."""
    found = _find(request)
    if request.split not in found.there:
        has = f"it has {', '.join(found.there)}"
        raise ConversionError(f"{request.raw}: {_TITLES[found.form]} without a split {request.split!r}; {has}")
    name = re.sub("[^A-Za-z0-9_-]+", "_", request.raw.resolve().name)
    reader = _READERS[found.form]
    classes = renamed(reader.classes(request, found.places), request.classes, named=reader.NAMED)
    if not classes and found.form != "odvg":
        raise ConversionError(f"{request.raw}: no class has a name; give a text file of them by --classes")
    place = found.places[request.split]
    items, total = reader.items(request, place, name, classes)
    provenance: dict[str, Any] = {
        "converter": "boxes", "format": found.form, "set": name, "files": reader.described(place)
    }  # fmt: skip
    provenance |= {"classes": request.classes.name} if request.classes else {}
    return RawDataset(
        name, request.split, LICENCE, provenance, items, total, categories=without_match(classes) or None,
        repeats=found.form == "odvg", reads=_reads(request, found.form, place),
    )  # fmt: skip


def _reads(request: Request, form: str, place: Any) -> Iterator[str | Path]:
    """The files that the records of a split are read from; of YOLO's images and labels each, too."""
    yield from [request.classes] if request.classes else []
    if form == "voc":
        yield from [place.names] if place.names else []
        yield from (path for path, _ in place.files())
    elif form == "labelme":
        yield from (path for path, _ in boxes_labelme.paths(place))
    elif form == "yolo":
        yield from (path for path in place if isinstance(path, Path))
        for image in boxes_yolo.images(place):
            yield image
            if (label := boxes_yolo.label_of(image)) is not None:
                yield label
    else:
        yield place if isinstance(place, Path) else place.path


def _find(request: Request) -> _Found:
    if request.raw.is_file():
        raise ConversionError(f"{request.raw}: give its folder, and the file by --annotations")
    if not request.raw.is_dir():
        raise ConversionError(f"{request.raw}: no such folder")
    for path in (request.annotations, request.raw / request.annotations) if request.annotations else ():
        if path.is_dir():
            raise ConversionError(f"{path}: a folder; --annotations names one file, folders of VOC, YOLO and "
                                  "labelme are looked for in SRC")  # fmt: skip
    broken: ConversionError | None = None
    for form in [request.format] if request.format else FORMATS:
        try:
            places = _READERS[form].places(request)
        except boxes_coco.NotRecognised as error:
            broken = error
            continue
        if places:
            return _Found(form, {split: places[split] for split in SPLITS if split in places})
    if broken is not None:
        raise broken
    if request.format:
        raise ConversionError(f"{request.raw}: nothing of the format {_TITLES[request.format]} found here")
    raise ConversionError(
        f"{request.raw}: neither COCO, VOC, YOLO, labelme, ODVG, CVAT nor a table of boxes was recognised; name the "
        "file by --annotations, or the format by --format (see docs/data.md for the layouts)"
    )
