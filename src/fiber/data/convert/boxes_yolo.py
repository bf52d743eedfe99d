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
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fiber.data.convert.class_names import Classes
from fiber.data.convert.image_folder import ImageFolder, is_image, plain
from fiber.data.convert.items import ConversionError, Drop, RawImage, RawItem, Request
from fiber.data.convert.json_stream import open_text
from fiber.data.convert.splits import SplitFolder, files, files_of, parts_of, split_of

NAMED = False
Place = list[SplitFolder | Path]
"""Folders of images, and text files that list images; none where the YAML file names a split that is not there."""
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_IMAGES = re.compile(rf"(.*{re.escape(os.sep)}|)images({re.escape(os.sep)}.*|)", re.IGNORECASE | re.DOTALL)
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
    rest = raw / "images" if (raw / "images").is_dir() else raw
    if by_split := parts_of(raw, is_image, _labelled, rest):
        return {split: list(parts) for split, parts in by_split.items()}
    folders = map(SplitFolder, (raw / "images", raw, raw / "obj_train_data"))
    folder = next((folder for folder in folders if _labelled(folder)), None)
    return {"train": [folder]} if folder is not None else {}


def _config(raw: Path) -> dict[str, Any] | None:
    """The content of the YAML file that has `names`, these as they are written: no, 1.10 and null are texts."""
    for path in sorted(
        [*files_of(raw, "*.yaml"), *files_of(raw, "*.yml")], key=lambda path: (path.stem != "data", path.name)
    ):
        try:
            text = path.read_text(encoding="utf-8-sig")
            config, written = yaml.safe_load(text), yaml.load(text, yaml.BaseLoader)
        except (OSError, UnicodeDecodeError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise ConversionError(f"{path}: not a YAML file in UTF-8: {' '.join(str(error).split())[:200]}") from None
        if isinstance(config, dict) and "names" in config:
            return config | {"names": _names(path, written.get("names", config["names"]))}
    return None


def _names(path: Path, names: Any) -> dict[int, str]:
    """number -> class, of a list of texts, of numbers with texts, or of texts with numbers."""
    pairs = dict(enumerate(names or ())) if isinstance(names, list) or not names else names
    if isinstance(pairs, dict) and all(isinstance(name, str) and name.strip() for name in pairs.values()):
        if all(str(number).isdecimal() for number in pairs):
            return {int(number): name for number, name in pairs.items()}
        turned = {int(number): str(name) for name, number in pairs.items() if number.isdecimal()}
        if len(turned) == len(pairs):
            return turned
    raise ConversionError(f"{path}: names must be a list of texts, like [cup, dog], or a text for each number, like "
                          f"{{0: cup, 1: dog}}, not {names!r:.100}")  # fmt: skip


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
        found.append(SplitFolder(place) if place.is_dir() else place)
    return found


def _labelled(part: SplitFolder) -> bool:
    """Whether an image below the folder has a label file of this format."""
    if not part.path.is_dir():
        return False
    for path in itertools.islice(part.files(is_image), 1000):
        if (label := label_of(path)) is not None:
            with open(label, "rb") as file:
                words = file.readline(4096).decode("latin-1").split()
            return not words or (len(words) >= 5 and class_of(words[0]) is not None)
    return False


def label_of(image: str) -> str | None:
    """The label file of an image, None where there is none: with the last folder `images` of its path `labels`, else
    beside it. Either may be written with capitals, and so may its ending."""
    stem = os.path.splitext(image)[0]
    for start in (*label_folders(stem), stem):
        for path in (f"{start}.txt", f"{start}.TXT"):
            if os.path.isfile(path):
                return path
    return None


def label_folders(path: str) -> tuple[str, ...]:
    """A path with its last folder `images` as `labels`, in two spellings; none where it has no such folder."""
    match = _IMAGES.fullmatch(path)
    return tuple(f"{match[1]}{name}{match[2]}" for name in ("labels", "Labels")) if match else ()


def class_of(word: str) -> int | None:
    """The number of a class, 3 or 3.0; None of what is none."""
    try:
        value = float(word)
        return int(word) if word.isdecimal() else int(value) if value.is_integer() else None
    except ValueError:
        return None


def described(place: Place) -> str:
    """The place, for people."""
    return ", ".join(map(_described, place)) or _NOWHERE


def _described(part: SplitFolder | Path) -> str:
    if isinstance(part, SplitFolder) and (part.left_out or part.without):
        return part.described()
    path = part.path if isinstance(part, SplitFolder) else part
    return os.path.join(path.parent.name, path.name)


def classes(request: Request, found: dict[str, Place]) -> Classes:
    """`names` of the YAML file, a list or a dict, or the lines of classes.txt; the id is YOLO's number + 1, as COCO's
    begin."""
    config = _config(request.raw)
    if config is not None:
        return [{"id": number + 1, "name": name} for number, name in config["names"].items()]
    spots = [request.raw, request.raw / "labels", request.raw / "labels" / "train", request.raw / "train",
             request.raw / "train" / "labels"]  # fmt: skip
    for path in (spot / name for spot in spots for name in _NAME_FILES):
        if path.is_file():
            with open_text(path) as lines:
                return [{"id": i, "name": line.strip()} for i, line in enumerate(lines, 1) if line.strip()]
    return []


def images(place: Place) -> Iterator[str]:
    """Paths of the images of a split: listed, or in the order of their names."""
    for path in place:
        if isinstance(path, SplitFolder):
            yield from path.files(is_image)
            continue
        folder = ImageFolder([path.parent], path.parent, split_of(path.stem))
        with open_text(path) as lines:
            for name in (line.strip().replace("\\", "/") for line in lines):
                if name:
                    yield _listed(name, folder)


def _listed(name: str, folder: ImageFolder) -> str:
    """The path of an image in a list: as written, by the end of its name, or by that in another case or spelling."""
    base, parts = folder.roots[0], Path(name).parts
    tried = [base / name.removeprefix("./"), Path(name), *(base.joinpath(*parts[-n:]) for n in (4, 3, 2, 1))]
    if (there := next(filter(Path.is_file, tried), None)) is not None:
        return str(there)
    found = folder.find(name, unique=False).paths
    same = found and os.path.isfile(found[0]) and plain(found[0])[-1] == plain(name)[-1]
    return found[0] if same else str(tried[0])


def items(request: Request, place: Place, name: str, known: Classes) -> tuple[Iterator[RawItem | Drop], int]:
    """(items of a split, their number)."""
    shape = (_config(request.raw) or {}).get("kpt_shape")
    ids = {entry["id"] for entry in known}
    _check_shares(request, place)
    found = _items(request.raw, place, name, ids, keypoints=shape is not None)
    return found, sum(1 for _ in images(place))


def _items(raw: Path, place: Place, source: str, ids: set[int], keypoints: bool) -> Iterator[RawItem | Drop]:
    stems = Counter(Path(path).stem for path in images(place))
    numbers = itertools.count(1)
    repeated: set[str] = set()  # paths of images whose stem others have
    used: set[int] = set()  # label files
    for path in images(place):
        stem, image_id = Path(path).stem, f"{source}_{Path(path).stem}"
        if stems[stem] > 1:
            inside = Path(path).is_relative_to(raw)
            image_id = f"{source}_{(Path(path).relative_to(raw) if inside else Path(path)).as_posix().lstrip('/')}"
            if path in repeated:
                yield Drop("file listed more than once", image_id, path)
                continue
            repeated.add(path)
        boxes: list[dict[str, Any]] = []
        drops: list[Drop] = []
        label = label_of(path)
        used.add(hash(str(label).casefold()))  # a disk may not tell a.txt from A.TXT
        for number, words in _lines(label) if label is not None else ():
            where = f"{label}, line {number}: {' '.join(words)[:100]}"
            box, category = share_box(words, keypoints), class_of(words[0])
            if box is None or category is None:
                drops.append(Drop("box malformed", image_id, where))
            elif category + 1 not in ids:
                drops.append(Drop("unknown category", image_id, where))
            else:
                boxes.append({"box": box, "category": category + 1, "id": next(numbers)})
        record = {"image_id": image_id, "source": source, "boxes": boxes}
        yield RawItem(record, (RawImage((path,)),), None, tuple(drops), fractions=True)
    for label in _labels(place):
        if hash(label.casefold()) not in used:
            yield Drop("label file without an image", source, label)


def _labels(place: Place) -> Iterator[str]:
    """The files in the folders `labels` that belong to folders of images, whole ones: those of lists and of what lies
    in no split have others' labels too."""
    for part in place:
        folders = label_folders(str(part.path)) if isinstance(part, SplitFolder) and not part.without else ()
        if folder := next(filter(os.path.isdir, folders), None):
            yield from (path for path in files(folder, _is_text) if os.path.basename(path) not in _NAME_FILES)


def _is_text(name: str) -> bool:
    return name.lower().endswith(".txt")


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
    except ValueError:
        return None
    if len(values) < 4 or class_of(words[0]) is None or not all(map(math.isfinite, values)):
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
    larger = sum(max(box[2:]) > 1 for box in boxes)
    if boxes and larger * 2 >= len(boxes):
        raise ConversionError(
            f"{request.raw}: {larger} of {len(boxes)} boxes of the first labels are larger than the image: YOLO has "
            "shares of its sides, between 0 and 1; divide x and width by the width, y and height by the height"
        )
