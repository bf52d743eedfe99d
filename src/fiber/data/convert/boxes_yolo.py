"""One's own boxes in YOLO's format: per image a text file of lines `class x y width height`, in shares of the image.

data.yaml (or any YAML file with `names`) says where the images of a split lie: a folder, a text file that lists them,
or several of these; paths count from its `path`, which is that of another machine more often than not. Labels lie
where `images` in the path of an image becomes `labels`, or beside it. Without a YAML file, classes.txt or obj.names
has the names, and folders have their usual ones.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fiber.data.convert.class_names import Classes
from fiber.data.convert.image_folder import is_image
from fiber.data.convert.items import ConversionError, Drop, RawImage, RawItem, Request
from fiber.data.convert.json_stream import open_text
from fiber.data.convert.splits import files, files_of, folders_of, split_of

NAMED = False
Place = list[Path]
"""Folders of images, and text files that list images; none where the YAML file names a split that is not there."""
_NOWHERE = "named by the YAML file, but not there: left out"
_JUDGED = 200  # images whose boxes tell whether they are shares


def places(request: Request) -> dict[str, Place]:
    """split -> where its images are listed; {} where the folder has no labels of this format. Training images must
    be there; of the others a YAML file may name what was never made, as Roboflow's do."""
    raw = request.raw
    config = _config(raw)
    if config is not None:
        named = {split: config[key] for split, key in _keys(config).items() if config[key]}
        if not named:
            raise ConversionError(f"{raw}: its YAML file names neither train, val nor test images")
        needed = "train" if "train" in named else next(iter(named))
        return {split: _entries(raw, config, value, split == needed) for split, value in named.items()}
    by_split = {split: list(filter(_labelled, folders)) for split, folders in folders_of(raw).items()}
    if any(by_split.values()):
        return {split: folders for split, folders in by_split.items() if folders}
    folder = next((folder for folder in (raw / "images", raw, raw / "obj_train_data") if _labelled(folder)), None)
    return {"train": [folder]} if folder is not None else {}


def _config(raw: Path) -> dict[str, Any] | None:
    for path in sorted(
        [*files_of(raw, "*.yaml"), *files_of(raw, "*.yml")], key=lambda path: (path.stem != "data", path.name)
    ):
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConversionError(f"{path}: not a YAML file in UTF-8: {' '.join(str(error).split())[:200]}") from None
        if isinstance(config, dict) and "names" in config:
            return config
    return None


def _keys(config: dict[str, Any]) -> dict[str, str]:
    return {split: key for key in ("train", "valid", "val", "test") if key in config and (split := split_of(key))}


def _entries(raw: Path, config: dict[str, Any], value: Any, needed: bool) -> Place:
    """The places of a split; [] where it is not there and not needed. Roboflow writes `../train/images` for a folder
    beside the file."""
    found: Place = []
    base = str(config.get("path") or "")
    for entry in value if isinstance(value, list) else [value]:
        inner = str(entry).replace("\\", "/")
        short = inner.lstrip("./") if inner.startswith(".") else inner
        tried = [raw / base / inner, raw / inner, raw / short, raw / Path(base).name / inner, raw / Path(inner).name]
        place = next((path for path in tried if path.exists()), None)
        if place is None and not found and not needed and not isinstance(value, list):
            return []
        if place is None:
            raise ConversionError(f"{raw}: the YAML file names {entry!r}, which is not there; looked for {tried[0]}, "
                                  f"{tried[1]}, {tried[2]}")  # fmt: skip
        found.append(place)
    return found


def _labelled(folder: Path) -> bool:
    """Whether an image below the folder has a label file of this format."""
    if not folder.is_dir():
        return False
    for path in itertools.islice(files(folder, is_image), 1000):
        if (label := label_of(path)) is not None:
            with open(label, "rb") as file:
                words = file.readline(4096).split()
            return not words or (len(words) >= 5 and words[0].isdigit())
    return False


def label_of(image: str) -> str | None:
    """The label file of an image, None where there is none: with the last folder `images` of its path `labels`, else
    beside it."""
    stem = os.path.splitext(image)[0]
    before, folder, after = stem.rpartition(f"{os.sep}images{os.sep}")
    for path in ([f"{before}{os.sep}labels{os.sep}{after}.txt"] if folder else []) + [f"{stem}.txt"]:
        if os.path.isfile(path):
            return path
    return None


def described(place: Place) -> str:
    """The place, for people."""
    return ", ".join(os.path.join(path.parent.name, path.name) for path in place) or _NOWHERE


def classes(request: Request, found: dict[str, Place]) -> Classes:
    """`names` of the YAML file, a list or a dict, or the lines of classes.txt; the id is YOLO's number + 1, as COCO's
    begin."""
    config = _config(request.raw)
    if config is not None:
        names = config["names"]
        pairs = names.items() if isinstance(names, dict) else enumerate(names or ())
        return [{"id": int(number) + 1, "name": str(name)} for number, name in pairs]
    spots = [request.raw, request.raw / "labels", request.raw / "labels" / "train", request.raw / "train",
             request.raw / "train" / "labels"]  # fmt: skip
    for path in (spot / name for spot in spots for name in ("classes.txt", "obj.names", "_darknet.labels")):
        if path.is_file():
            with open_text(path) as lines:
                return [{"id": i, "name": line.strip()} for i, line in enumerate(lines, 1) if line.strip()]
    return []


def images(place: Place) -> Iterator[str]:
    """Paths of the images of a split: listed, or in the order of their names."""
    for path in place:
        if path.is_dir():
            yield from files(path, is_image)
            continue
        with open_text(path) as lines:
            for name in (line.strip().replace("\\", "/") for line in lines):
                if name:
                    tried = [path.parent / name.removeprefix("./"), Path(name)]
                    tried += [path.parent.joinpath(*Path(name).parts[-n:]) for n in (4, 3, 2, 1)]
                    yield str(next((file for file in tried if file.is_file()), tried[0]))


def items(request: Request, place: Place, name: str, known: Classes) -> tuple[Iterator[RawItem | Drop], int]:
    """(items of a split, their number)."""
    shape = (_config(request.raw) or {}).get("kpt_shape")
    ids = {entry["id"] for entry in known}
    _check_shares(request, place)
    return _items(place, name, ids, keypoints=shape is not None), sum(1 for _ in images(place))


def _items(place: Place, source: str, ids: set[int], keypoints: bool) -> Iterator[RawItem | Drop]:
    stems = Counter(Path(path).stem for path in images(place))
    numbers = itertools.count(1)
    for path in images(place):
        image = Path(path)
        repeated = stems[image.stem] > 1
        image_id = f"{source}_{os.path.join(image.parent.name, image.name) if repeated else image.stem}"
        boxes: list[dict[str, Any]] = []
        drops: list[Drop] = []
        label = label_of(path)
        for number, words in _lines(label) if label is not None else ():
            where = f"{label}, line {number}: {' '.join(words)[:100]}"
            box = share_box(words, keypoints)
            if box is None:
                drops.append(Drop("box malformed", image_id, where))
            elif int(words[0]) + 1 not in ids:
                drops.append(Drop("unknown category", image_id, where))
            else:
                boxes.append({"box": box, "category": int(words[0]) + 1, "id": next(numbers)})
        record = {"image_id": image_id, "source": source, "boxes": boxes}
        yield RawItem(record, (RawImage((path,)),), None, tuple(drops), fractions=True)


def _lines(label: str) -> Iterator[tuple[int, list[str]]]:
    with open(label, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if words := line.split():
                yield number, words


def share_box(words: list[str], keypoints: bool = False) -> list[float] | None:
    """[center x, center y, width, height] of a line, of a polygon the box around it; None where it is neither.

    Six numbers are a box and a score, more are corners, or where the set has keypoints, a box and those.
    """
    try:
        values = [float(word) for word in words[1:]]
        int(words[0])
    except ValueError:
        return None
    if len(values) < 4 or not all(map(math.isfinite, values)):
        return None
    if len(values) < 6 or keypoints:
        return values[:4]
    if len(values) % 2:
        return None
    (left, right), (top, bottom) = ((min(side), max(side)) for side in (values[::2], values[1::2]))
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def _check_shares(request: Request, place: Place) -> None:
    """Raises ConversionError where the numbers of the first images are pixels."""
    labels = (label for path in itertools.islice(images(place), _JUDGED) if (label := label_of(path)) is not None)
    boxes = [box for label in labels for _, words in _lines(label) if (box := share_box(words)) is not None]
    if boxes and all(max(box[2:]) > 1 for box in boxes):
        raise ConversionError(
            f"{request.raw}: all {len(boxes)} boxes of the first labels are larger than the image: YOLO has shares "
            "of its sides, between 0 and 1; divide x and width by the width, y and height by the height"
        )
