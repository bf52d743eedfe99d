"""One's own boxes in Pascal VOC's format: one XML file per image."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fiber.data.convert.boxes_coco import size_of, whole_number
from fiber.data.convert.class_names import Classes, by_name
from fiber.data.convert.image_folder import ImageFolder
from fiber.data.convert.items import ConversionError, Drop, RawImage, RawItem, Request
from fiber.data.convert.json_stream import open_text
from fiber.data.convert.splits import files, files_of, folders_of, split_of, subfolders

NAMED = True


@dataclass(frozen=True)
class Place:
    """The XML files of a split: those that `names` lists, or all of the folder. images: where they are looked for."""

    annotations: Path
    images: tuple[Path, ...]
    names: Path | None = None

    def paths(self) -> Iterator[str]:
        """In the order of the list, or of their names."""
        if self.names is None:
            yield from files(self.annotations, _is_xml)
            return
        with open_text(self.names) as lines:
            for line in lines:
                if words := line.split():
                    yield str(self.annotations / f"{words[0]}.xml")


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml")


def places(request: Request) -> dict[str, Place]:
    """split -> its XML files; {} where there are none."""
    raw = request.raw
    own = (request.images,) if request.images else ()
    folder = next((raw / name for name in ("Annotations", "annotations", "xml") if _has_xml(raw / name)), None)
    if folder is not None:
        images = own or (raw / "JPEGImages", raw / "images", folder, raw)
        lists = {path.stem: path for path in files_of(raw / "ImageSets" / "Main", "*.txt")}
        found = {split: lists[split] for split in ("train", "val", "test") if split in lists}
        if "train" not in found and "trainval" in lists:
            found["train"] = lists["trainval"]
        if found:
            return {split: Place(folder, images, path) for split, path in found.items()}
        if parts := {split: path for path in subfolders(folder) if (split := split_of(path.name))}:
            return {split: Place(path, images) for split, path in parts.items()}
        return {"train": Place(folder, images)}
    parts = {split: paths[0] for split, paths in folders_of(raw).items() if _has_xml(paths[0])}
    if parts:
        return {split: Place(path, own or (path, path / "images", raw)) for split, path in parts.items()}
    return {"train": Place(raw, own or (raw,))} if _has_xml(raw) or _has_xml(raw / "images") else {}


def _has_xml(folder: Path) -> bool:
    return folder.is_dir() and next(files(folder, _is_xml), None) is not None


def described(place: Place) -> str:
    """The place, for people."""
    return place.names.name if place.names else f"{place.annotations.name}/*.xml"


def classes(request: Request, found: dict[str, Place]) -> Classes:
    """All names in the files of all splits, in alphabetical order: the format has no list of them. With a plain list
    of names (--classes) the files need not be read."""
    names: Counter[str] = Counter()
    problem = ""
    for path in itertools.chain.from_iterable(place.paths() for place in found.values()):
        try:
            names.update(entry.findtext("name", "").strip() for entry in _root(path).iter("object"))
        except (OSError, ElementTree.ParseError) as error:
            problem = problem or f"{path}: {error}"
    if not names and problem:
        raise ConversionError(f"{problem}; no XML file here can be read (not UTF-8, perhaps: save them as UTF-8)")
    if not names:
        raise ConversionError(f"{request.raw}: no XML file here has an <object>, as VOC's have, one file per image")
    return [{"id": i, "name": name} for i, name in enumerate(sorted(name for name in names if name), 1)]


def _root(path: str) -> ElementTree.Element:
    """The root of an XML file. Raises OSError, ParseError."""
    data = Path(path).read_bytes()
    try:
        return ElementTree.fromstring(data)
    except (ValueError, LookupError):  # in an encoding of several bytes, such as GBK, which the parser does not know
        declared = re.match(rb"""\s*<\?xml[^>]*?encoding=["']([\w.-]+)["'][^>]*\?>""", data)
        try:
            text = data[declared.end() :].decode(declared[1].decode()) if declared else data.decode()
        except (ValueError, LookupError) as error:
            raise ElementTree.ParseError(str(error)) from None
        return ElementTree.fromstring(text)


def items(request: Request, place: Place, name: str, known: Classes) -> tuple[Iterator[RawItem | Drop], int]:
    """(items of a split, their number)."""
    return _items(place, name, by_name(known)), sum(1 for _ in place.paths())


def _items(place: Place, source: str, ids: dict[str, int]) -> Iterator[RawItem | Drop]:
    folder = ImageFolder(place.images)
    stems = Counter(Path(path).stem for path in place.paths())
    numbers = itertools.count(1)
    for path in place.paths():
        stem = Path(path).stem
        image_id = (
            f"{source}_{stem if stems[stem] < 2 else Path(path).relative_to(place.annotations).with_suffix('')}"
        )
        try:
            root = _root(path)
        except OSError as error:
            yield Drop("annotation file missing", image_id, str(error))
            continue
        except ElementTree.ParseError as error:
            yield Drop("annotation file broken", image_id, f"{path}: {error}")
            continue
        boxes: list[dict[str, Any]] = []
        drops: list[Drop] = []
        for entry in root.iter("object"):
            _add_box(entry, ids, image_id, boxes, drops, numbers)
        image = _image(folder, path, root.findtext("filename", "").strip())
        size = size_of(*(whole_number(root.findtext(f"size/{side}", "")) for side in ("width", "height")))
        record = {"image_id": image_id, "source": source, "boxes": boxes}
        yield RawItem(record, (image,), size, tuple(drops))


def _image(folder: ImageFolder, path: str, named: str) -> RawImage:
    """The image of the XML file's own name; else what the file calls it, which tools leave as it once was."""
    image = folder.find(Path(path).stem)
    return image if os.path.isfile(image.paths[0]) or not named else folder.find(named)


def _add_box(
    entry: ElementTree.Element,
    ids: dict[str, int],
    image_id: str,
    boxes: list[dict[str, Any]],
    drops: list[Drop],
    numbers: Iterator[int],
) -> None:
    name = entry.findtext("name", "").strip()
    if name not in ids:
        drops.append(Drop("unknown category", image_id, repr(name)))
        return
    corners = [entry.findtext(f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        box = [float(corner) for corner in corners]
    except ValueError:
        drops.append(Drop("box malformed", image_id, f"{name}: {corners}"))
        return
    boxes.append({"box": box, "category": ids[name], "id": next(numbers)})
