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
from fiber.data.convert.file_names import FileNames
from fiber.data.convert.image_folder import ImageFolder, is_image
from fiber.data.convert.items import ConversionError, Drop, RawItem, Request
from fiber.data.convert.json_stream import open_text
from fiber.data.convert.splits import SplitFolder, files_of, parts_of

NAMED = True


@dataclass(frozen=True)
class Place:
    """The XML files of a split: those that `names` lists, or all of the folders. images: where they lie."""

    parts: tuple[SplitFolder, ...]
    images: tuple[Path, ...]
    names: Path | None = None

    def paths(self) -> Iterator[tuple[str, str] | Drop]:
        """(path, NAME/INNER of it as of `FileNames.find_of`), in the order of the list, or of their names."""
        if self.names is None:
            for part in self.parts:
                for path in part.files(_is_xml):
                    yield path, f"{part.path.name}/{Path(path).relative_to(part.path).with_suffix('').as_posix()}"
            return
        folder = self.parts[0].path
        with open_text(self.names) as lines:
            for number, line in enumerate(lines, 1):
                if not (words := line.split()):
                    continue
                names = [_bare(line.strip()), _bare(words[0])]  # a name may have blanks, or a number may follow it
                inner = next((name for name in names if (folder / f"{name}.xml").is_file()), names[1])
                if Path(inner).is_absolute() or ".." in Path(inner).parts or "\0" in inner:
                    yield Drop(
                        "name outside of the folder", self.names.stem, f"{self.names}, line {number}: {inner!r}"
                    )
                else:
                    yield str(folder / f"{inner}.xml"), f"{folder.name}/{Path(inner).as_posix()}"

    def files(self) -> Iterator[tuple[str, str]]:
        """`paths` without what is dropped."""
        return (entry for entry in self.paths() if not isinstance(entry, Drop))


def _bare(name: str) -> str:
    """Without the ending of an image or of an XML file."""
    name = name.replace("\\", "/")
    return os.path.splitext(name)[0] if is_image(name) or _is_xml(name) else name


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml")


def places(request: Request) -> dict[str, Place]:
    """split -> its XML files; {} where there are none."""
    raw = request.raw
    own = (request.images,) if request.images else ()
    names = ("Annotations", "annotations", "xml")
    folder = next((raw / name for name in names if _has_xml(SplitFolder(raw / name))), None)
    if folder is not None:
        images = own or (raw / "JPEGImages", raw / "images", folder, raw)
        lists = {path.stem: path for path in files_of(raw / "ImageSets" / "Main", "*.txt")}
        found = {split: lists[split] for split in ("train", "val", "test") if split in lists}
        if "train" not in found and "trainval" in lists:
            found["train"] = lists["trainval"]
        if found:
            return {split: Place((SplitFolder(folder),), images, path) for split, path in found.items()}
        parts = parts_of(folder, _is_xml, _has_xml) or {"train": [SplitFolder(folder)]}
        return {split: Place(tuple(paths), images) for split, paths in parts.items()}
    found_parts = parts_of(raw, _is_xml, _has_xml)
    if not found_parts and _has_xml(SplitFolder(raw)):
        found_parts = {"train": [SplitFolder(raw)]}
    return {split: Place(tuple(parts), own or tuple(_near(parts, raw))) for split, parts in found_parts.items()}


def _near(parts: list[SplitFolder], raw: Path) -> Iterator[Path]:
    for part in parts:
        yield from (part.path, part.path / "images")
    yield raw


def _has_xml(part: SplitFolder) -> bool:
    return part.path.is_dir() and next(part.files(_is_xml), None) is not None


def described(place: Place) -> str:
    """The place, for people."""
    return place.names.name if place.names else ", ".join(part.described("/*.xml") for part in place.parts)


def classes(request: Request, found: dict[str, Place]) -> Classes:
    """All names in the files of all splits, in alphabetical order: the format has no list of them. With a plain list
    of names (--classes) the files need not be read."""
    names: Counter[str] = Counter()
    problem = ""
    for path, _ in itertools.chain.from_iterable(place.files() for place in found.values()):
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
    # Lists divide the images whatever their folders are called.
    divided = place.names is None and len(places(request)) > 1
    folder = ImageFolder(place.images, request.images or request.raw, request.split if divided else None)
    return _items(place, folder, name, by_name(known)), sum(1 for _ in place.paths())


def _items(place: Place, folder: ImageFolder, source: str, ids: dict[str, int]) -> Iterator[RawItem | Drop]:
    listed = FileNames(own for _, own in place.files())
    stems = Counter(os.path.basename(own) for _, own in place.files())
    several = sum(not part.left_out for part in place.parts) > 1
    numbers = itertools.count(1)
    for entry in place.paths():
        if isinstance(entry, Drop):
            yield entry
            continue
        path, own = entry
        stem = os.path.basename(own)
        image_id = f"{source}_{stem if stems[stem] < 2 else own if several else own.partition('/')[2]}"
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
        for found in root.iter("object"):
            _add_box(found, ids, image_id, boxes, drops, numbers)
        image = listed.find_of(folder, path, own, root.findtext("filename", "").strip())
        size = size_of(*(whole_number(root.findtext(f"size/{side}", "")) for side in ("width", "height")))
        record = {"image_id": image_id, "source": source, "boxes": boxes}
        yield RawItem(record, (image,), size, tuple(drops))


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
