"""One's own boxes in ODVG's format (Open-GroundingDINO, MMDetection): JSON lines, one image each.

{"filename", "height", "width", "detection": {"instances": [{"bbox": [x0, y0, x1, y1], "label", "category"}]}}, or
{..., "grounding": {"caption", "regions": [{"bbox": one box or several, "phrase": one text or several}]}}.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert import json_stream
from fiber.data.convert.boxes_coco import head_of, size_of
from fiber.data.convert.class_names import Classes
from fiber.data.convert.file_names import FileNames
from fiber.data.convert.image_folder import ImageFolder, plain
from fiber.data.convert.items import ConversionError, Drop, RawItem, Request, existing
from fiber.data.convert.splits import files_of, folders_of, split_of

NAMED = False
Place = Path


def places(request: Request) -> dict[str, Place]:
    """split -> file of JSON lines; {} where there is none of this format."""
    raw = request.raw
    if request.annotations is not None:
        path = existing([request.annotations, raw / request.annotations], "the annotations")
        return {split_of(path.stem) or "train": path} if _is_odvg(path) else {}
    found: dict[str, Path] = {}
    for path in sorted([*files_of(raw, "*.json*"), *files_of(raw / "annotations", "*.json*")]):
        if _is_odvg(path):
            split = split_of(path.stem) or "train"
            if split in found:
                raise ConversionError(f"{path}: {found[split].name} is {split} already; name one by --annotations")
            found[split] = path
    return found


def _is_odvg(path: Path) -> bool:
    first = head_of(path).partition("\n")[0]
    return '"filename"' in first and ('"detection"' in first or '"grounding"' in first)


def described(place: Place) -> str:
    """The place, for people."""
    return place.name


def classes(request: Request, found: dict[str, Place]) -> Classes:
    """Labels and their names as the instances of all splits have them, or as a label map beside says; none of files
    of groundings alone."""
    names: dict[int, str] = {}
    for path in files_of(request.raw, "*label*.json"):
        content = json_stream.load(path)
        if isinstance(content, dict) and all(key.isdecimal() and isinstance(content[key], str) for key in content):
            names |= {int(key): name for key, name in content.items()}
    listed = set(names)
    for path in found.values():
        for number, line in _lines(path):
            for entry in _instances(line):
                label, name = _label(entry), str(entry.get("category") or "").strip()
                if label is None or label in listed:
                    continue
                if name and (before := names.get(label)) and before != name:
                    raise ConversionError(f"{path}, line {number}: label {label} is {name!r} here and {before!r} "
                                          "before: give each class its own number")  # fmt: skip
                names[label] = name or names.get(label, "")
    return [{"id": label, "name": names[label]} for label in sorted(names)]


def _label(entry: dict[str, Any]) -> int | None:
    """The number of a class, 1, "1" or 1.0; None where there is none."""
    label = entry.get("label")
    if isinstance(label, str) and label.strip().isdecimal() and len(label) < 20:
        return int(label)
    if isinstance(label, float) and label.is_integer():
        return int(label)
    return label if type(label) is int else None


def items(request: Request, place: Place, name: str, known: Classes) -> tuple[Iterator[RawItem | Drop], int]:
    """(items of a split, their number)."""
    roots = [request.images] if request.images else [request.raw, request.raw / "images"]
    split = split_of(place.stem) or (request.split if len(places(request)) > 1 else None)
    roots += folders_of(request.raw).get(split or "train", [])
    folder = ImageFolder(roots, request.images or request.raw, split)
    return _items(place, folder, name, {entry["id"] for entry in known}), sum(1 for _ in _lines(place))


def _items(place: Path, folder: ImageFolder, source: str, ids: set[Any]) -> Iterator[RawItem | Drop]:
    numbers = itertools.count(1)
    names = {name for _, line in _lines(place) if (name := _name(line))}
    listed, stems = FileNames(names), Counter(map(_stem, names))
    seen: set[str] = set()  # images of detections; one of groundings may have several captions, a line each
    for number, line in _lines(place):
        name = _name(line)
        if name is None:
            detail = line if isinstance(line, str) else "no filename"
            yield Drop("line malformed", source, f"{place.name}, line {number}: {detail}"[:300])
            continue
        image_id = f"{source}_{_stem(name) if stems[_stem(name)] < 2 else name}"
        if name in seen and not isinstance(line.get("grounding"), dict):
            yield Drop("file listed more than once", image_id, f"{place.name}, line {number}: {name} again")
            continue
        seen.add(name)
        record: dict[str, Any] = {"image_id": image_id, "source": source, "boxes": []}
        drops: list[Drop] = []
        for entry in _instances(line):
            if not _is_box(entry.get("bbox")):
                drops.append(Drop("box malformed", image_id, f"{entry!r:.200}"))
            elif (label := _label(entry)) not in ids:
                drops.append(Drop("unknown category", image_id, f"{entry!r:.200}"))
            else:
                box = {"box": list(entry["bbox"]), "category": label, "id": next(numbers)}
                record["boxes"].append(box)
        if isinstance(line.get("grounding"), dict):
            _ground(line["grounding"], record, drops)
        size = size_of(line.get("width"), line.get("height"))
        yield RawItem(record, (listed.find(folder, name),), size, tuple(drops))


def _name(line: Any) -> str | None:
    """The file's name with `/` between its parts; None where a line has none."""
    name = line.get("filename") if isinstance(line, dict) else None
    return name.replace("\\", "/") if isinstance(name, str) and plain(name) and Path(name).name else None


def _stem(name: str) -> str:
    return Path(name).with_suffix("").as_posix()


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, content) of the lines; of one that does not parse, why."""
    with json_stream.open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, str(error)


def _instances(line: Any) -> list[dict[str, Any]]:
    detection = line.get("detection") if isinstance(line, dict) else None
    instances = detection.get("instances") if isinstance(detection, dict) else None
    return [entry for entry in instances if isinstance(entry, dict)] if isinstance(instances, list) else []


def _is_box(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 4 else [None]
    return all(type(side) is float or (type(side) is int and abs(side) < 1 << 53) for side in sides)


def _ground(grounding: dict[str, Any], record: dict[str, Any], drops: list[Drop]) -> None:
    """The caption with its phrases. A phrase is where the caption first has its words and no phrase is yet."""
    caption = str(grounding.get("caption") or "")
    phrases: list[dict[str, Any]] = []
    taken: set[int] = set()
    for region in grounding.get("regions") or ():
        if not isinstance(region, dict):
            continue
        texts = region.get("phrase")
        value = region.get("bbox")
        boxes = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
        spans = []
        for text in texts if isinstance(texts, list) else [texts]:
            hits = (
                [match.span() for match in re.finditer(_pattern(str(text)), caption, re.IGNORECASE)] if text else []
            )
            span = next((list(hit) for hit in hits if not taken & set(range(*hit))), None)
            if span is not None:
                taken |= set(range(*span))
                spans.append(span)
        good = [list(box or ()) for box in boxes if _is_box(box)]
        if not spans or not good:
            reason = "box malformed" if spans else "phrase not in the caption"
            drops.append(Drop(reason, record["image_id"], f"{region!r:.200}"))
            continue
        first = len(record["boxes"])
        record["boxes"] += [{"box": box} for box in good]
        phrases.append({"span": sorted(spans), "boxes": list(range(first, first + len(good)))})
    if caption.strip():
        record["captions"] = [{"text": caption, "phrases": phrases} if phrases else {"text": caption}]


def _pattern(phrase: str) -> str:
    """A phrase as whole words: "man" is not in "woman". Scripts written without blanks have no such borders."""
    before, after = ("" if unicodedata.east_asian_width(edge) in "WF" else border
                     for edge, border in ((phrase[0], r"(?<!\w)"), (phrase[-1], r"(?!\w)")))  # fmt: skip
    return f"{before}{re.escape(phrase)}{after}"
