"""One's own boxes in ODVG's format (Open-GroundingDINO, MMDetection): JSON lines, one image each.

{"filename", "height", "width", "detection": {"instances": [{"bbox": [x0, y0, x1, y1], "label", "category"}]}}, or
{..., "grounding": {"caption", "regions": [{"bbox": one box or several, "phrase": one text or several}]}}.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert import json_stream
from fiber.data.convert.boxes_coco import head_of, size_of
from fiber.data.convert.class_names import Classes
from fiber.data.convert.image_folder import ImageFolder
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
    for line in (line for place in found.values() for _, line in _lines(place)):
        for entry in _instances(line):
            if isinstance(entry.get("label"), int):
                names.setdefault(entry["label"], str(entry.get("category", "")))
    return [{"id": label, "name": names[label]} for label in sorted(names)]


def items(request: Request, place: Place, name: str, known: Classes) -> tuple[Iterator[RawItem | Drop], int]:
    """(items of a split, their number)."""
    roots = [request.images] if request.images else [request.raw, request.raw / "images"]
    roots += folders_of(request.raw).get(split_of(place.stem) or "train", [])
    return _items(place, ImageFolder(roots), name, {entry["id"] for entry in known}), sum(1 for _ in _lines(place))


def _items(place: Path, folder: ImageFolder, source: str, ids: set[Any]) -> Iterator[RawItem | Drop]:
    numbers = itertools.count(1)
    for number, line in _lines(place):
        if not isinstance(line, dict) or not isinstance(line.get("filename"), str):
            detail = line if isinstance(line, str) else "no filename"
            yield Drop("line malformed", source, f"{place.name}, line {number}: {detail}"[:300])
            continue
        image_id = f"{source}_{Path(line['filename'].replace(chr(92), '/')).with_suffix('').as_posix()}"
        record: dict[str, Any] = {"image_id": image_id, "source": source, "boxes": []}
        drops: list[Drop] = []
        for entry in _instances(line):
            if not _is_box(entry.get("bbox")):
                drops.append(Drop("box malformed", image_id, f"{entry!r:.200}"))
            elif entry.get("label") not in ids:
                drops.append(Drop("unknown category", image_id, f"{entry!r:.200}"))
            else:
                box = {"box": list(entry["bbox"]), "category": entry["label"], "id": next(numbers)}
                record["boxes"].append(box)
        if isinstance(line.get("grounding"), dict):
            _ground(line["grounding"], record, drops)
        size = size_of(line.get("width"), line.get("height"))
        yield RawItem(record, (folder.find(line["filename"]),), size, tuple(drops))


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
    return isinstance(value, list) and len(value) == 4 and all(type(side) in (int, float) for side in value)


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
            hits = [m.span() for m in re.finditer(re.escape(str(text)), caption, re.IGNORECASE)] if text else []
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
