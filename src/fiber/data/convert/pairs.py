"""Your own image-text pairs, in the forms they usually have, guessed from the folder.

SRC is a folder, or the file of texts in it: .csv or .tsv with a header (image, filepath, ... and caption, title,
...) or of two columns without one, .token (Flickr), .jsonl, .parquet, or .json: a list of {"image", "caption"}
(ALBEF, BLIP, LAVIS), {"1.jpg": text or texts}, COCO's captions, or Karpathy's split file. An image is a path, a URL
(http), or its bytes (base64 in text files). Rows of one image become one record. Or SRC holds WebDataset tars of any
key names, or images with a .txt of the same name beside them or in a folder `texts` or `captions` beside their
`images`. Splits are called train, val and test by the names of files and folders, or by a column or key `split`.
Images are looked for under --images, else in SRC. --in-place uses tars as they lie.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fiber.data.convert import pair_items, web_pairs
from fiber.data.convert.boxes_coco import head_of
from fiber.data.convert.by_image import ByImage
from fiber.data.convert.image_folder import ImageFolder, is_image
from fiber.data.convert.items import ConversionError, Drop, RawDataset, RawImage, RawItem, Request, existing
from fiber.data.convert.json_stream import has_array, iter_array
from fiber.data.convert.pair_rows import NAMES, SPLIT, TEXTS, RowFile, table
from fiber.data.convert.seen import Seen
from fiber.data.convert.splits import (
    IMAGE_ENDINGS,
    TEXT_FOLDERS,
    SplitFolder,
    files_of,
    own_names,
    own_split,
    parts_of,
    split_of,
    subfolders,
)

Place = Path | SplitFolder
SPLITS = ("train", "val", "test")
OPTIONS = ("raw", "annotations", "images", "image_column", "text_column", "image_key", "text_key", "in_place")
LICENCE = "that of your images and texts"
_TABLES, _LINES = (".csv", ".tsv", ".txt", ".token"), (".jsonl", ".ndjson", ".parquet")
_BESIDE = "images with .txt beside them"


def splits(request: Request) -> tuple[str, list[str]]:
    """(one line that says what was recognised, the splits)."""
    kind, found = _find(request)
    said = "; ".join(f"{split}: {_described(places)}" for split, places in found.items())
    return f"{request.raw}: {kind}; {said}", [split for split in SPLITS if split in found]


def read(request: Request) -> RawDataset:
    """One record per image, with all texts of it."""
    kind, found = _find(request)
    folder = request.raw.parent if request.raw.is_file() else request.raw
    name = folder.resolve().name
    # Files of one split alone are whatever split is asked for.
    split = request.split if len(found) > 1 else next(iter(found))
    if split not in found:
        raise ConversionError(f"{request.raw}: no split {request.split!r} here; it has {', '.join(found)}")
    places = found[split]
    paths = [_path(place) for place in places]
    provenance: dict[str, Any] = {"converter": "pairs", "form": kind, "folder": name}
    total = None
    names = own_names(dict.fromkeys(map(_path, itertools.chain(*found.values()))))
    if kind == "tars":
        items: Iterator[RawItem | Drop] = web_pairs.tars(paths, name, request.image_key, request.text_key, names)
    elif kind == _BESIDE:
        items = _beside([place for place in places if isinstance(place, SplitFolder)], folder, name)
    else:
        provenance |= {"file": _described(places), "bytes": sum(path.stat().st_size for path in paths)}
        roots = [request.images] if request.images else [path.parent for path in paths] + [folder, folder / "images"]
        # A list that is called like its split has no images of other splits; one with a column of splits may.
        divided = len(found) > 1 and all(own_split(path, folder) == split for path in paths)
        images = ImageFolder(roots, request.images or folder, split if divided else None)
        items, total = _of_files(replace(request, split=split), {path: names[path] for path in paths}, images, name)
    tars = paths if kind == "tars" else []
    return RawDataset(name, request.split, LICENCE, provenance, items, total, tars=tars, reads=paths)


def _described(places: Sequence[Place]) -> str:
    if any(isinstance(place, SplitFolder) for place in places):
        return ", ".join(place.described() for place in places if isinstance(place, SplitFolder))
    return _path(places[0]).name + (f" and {len(places) - 1} more" if len(places) > 1 else "")


def _path(place: Place) -> Path:
    return place.path if isinstance(place, SplitFolder) else place


def _find(request: Request) -> tuple[str, Mapping[str, Sequence[Place]]]:
    """(what the source is, split -> files or folders)."""
    raw = request.raw
    if request.annotations is not None or raw.is_file():
        places = [request.annotations, raw / request.annotations] if request.annotations else [raw]
        path = existing(places, "the texts")
        if not path.is_file():
            raise ConversionError(f"{path}: no file; --annotations names one, folders are given as SRC")
        return "texts in a file", {split: [path] for split in _splits_in(path, request)}
    if not raw.is_dir():
        raise ConversionError(f"{raw}: no such folder or file of texts")
    tars: dict[str, list[Path]] = {}
    # A folder of no split that was packed here before is no source.
    own = [path for path in subfolders(raw) if split_of(path.name) or not (path / "dataset.json").is_file()]
    for path in (path for folder in (raw, *own) for path in files_of(folder, "*.tar")):
        names = (path.stem,) if path.parent == raw else (path.parent.name, path.stem)
        tars.setdefault(split_of(*names) or "train", []).append(path)
    if tars:
        return "tars", tars
    texts: dict[str, list[Path]] = {}
    refused: list[str] = []
    for folder in (raw, raw / "annotations", raw / "data", *_inner(raw)):
        for path in _lists(folder):
            for split in _splits_in(path, request) if _has_texts(path, request, refused) else ():
                texts.setdefault(split, []).append(path)
    if texts:
        return "texts in files", texts
    whole, inner = SplitFolder(raw), raw / "images"
    if folders := parts_of(raw, is_image, _has_pair, inner if inner.is_dir() else raw):
        return _BESIDE, dict(folders)
    if _has_pair(whole):
        return _BESIDE, {"train": [whole]}
    raise ConversionError(
        f"{raw}: no tars, no .txt beside the images, and no table or JSON of images ({', '.join(NAMES[:4])}, ...) "
        f"and texts ({', '.join(TEXTS[:4])}, ...); name a .csv, .tsv, .jsonl, .json or .parquet file by "
        "--annotations, its columns by --image-column and --text-column" + "".join(f"; {why}" for why in refused[:1])
    )


def _splits_in(path: Path, request: Request) -> list[str]:
    """Those that the rows of a file name, else the one of its name or of its folder's."""
    kind = path.suffix.lower()
    if kind == ".json" and _is_object(path):
        named = pair_items.image_splits(path)
    elif kind == ".parquet":
        named = pair_items.parquet_splits(path)
    else:
        named = _row_file(path, request).splits()
    inner = split_of(path.parent.name) if path.parent.parent == request.raw else None
    return [split for split in SPLITS if split in named] or [split_of(path.stem) or inner or "train"]


def _is_object(path: Path) -> bool:
    return head_of(path).lstrip("\xef\xbb\xbf \t\r\n")[:1] != "["


def _inner(raw: Path) -> list[Path]:
    return [path for path in subfolders(raw) if split_of(path.name)]


def _lists(folder: Path) -> list[Path]:
    """The files in a folder that may be lists of images: not those of one image, which are called like it."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        kinds = (*_TABLES, *_LINES, ".json")
        found = (entry.path for entry in entries if entry.name.lower().endswith(kinds) and os.path.isfile(entry.path))
        return sorted(map(Path, itertools.filterfalse(_belongs_to_an_image, found)))


def _belongs_to_an_image(path: str) -> bool:
    stem, kind = os.path.splitext(path)
    if kind.lower() == ".parquet" and os.path.isdir(stem):  # what img2dataset says of the images in a folder
        return True
    return any(os.path.exists(stem + end) for extension in IMAGE_ENDINGS for end in (extension, extension.upper()))


def _has_texts(path: Path, request: Request, refused: list[str]) -> bool:
    """Whether a file is one of images and texts; why a table is not goes to `refused`."""
    kind = path.suffix.lower()
    if kind in _TABLES:
        try:
            table(path, request.image_column, request.text_column)
        except ConversionError as error:
            refused.append(str(error))
            return False
        return True
    if kind == ".json":
        head = head_of(path).lstrip("\xef\xbb\xbf \t\r\n")
        if head[:1] == "{":
            entries = itertools.islice(iter_array(path, "annotations"), 100) if has_array(path, "annotations") else ()
            captions = any(isinstance(entry, dict) and "caption" in entry for entry in entries)
            return captions or '"sentences"' in head or pair_items.is_mapping(path)
        return head[:1] == "[" and any(f'"{key}"' in head for key in (request.text_column, *TEXTS) if key)
    return kind in _LINES


def _has_pair(folder: SplitFolder) -> bool:
    return any(_text_of(path) is not None for path in folder.files(is_image))


def _text_of(image: str) -> Path | None:
    """The .txt of an image: beside it, or in a folder of texts beside the last folder `images` of its path."""
    stem = os.path.splitext(image)[0]
    before, folder, after = f"{os.sep}{stem}".rpartition(f"{os.sep}images{os.sep}")
    places = [stem, *(os.path.join(before[1:], name, after) for name in TEXT_FOLDERS if folder)]
    texts = (place + end for place in places for end in (".txt", ".TXT"))
    return next((Path(text) for text in texts if os.path.isfile(text)), None)


def _beside(folders: list[SplitFolder], raw: Path, source: str) -> Iterator[RawItem | Drop]:
    """Images are named from the folder of their split on, or, where it has several, from `raw` on."""
    taken = [folder for folder in folders if not folder.left_out]
    used = Seen()  # texts
    root = taken[0].path if len(taken) == 1 else raw
    for path in (path for folder in taken for path in folder.files(is_image)):
        name, text = Path(path).relative_to(root).as_posix(), _text_of(path)
        if text is None:
            yield Drop("no caption", f"{source}_{name}", f"no {Path(path).stem}.txt beside it")
            continue
        used.again(str(text).casefold())  # a disk may not tell a.txt from a.TXT
        try:
            caption = text.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            yield Drop("text not in UTF-8", f"{source}_{name}", f"{text.name}: {error}")
        else:
            yield pair_items.item(source, name, [caption], RawImage((path,)))
    for path in (path for folder in taken for path in _texts(folder)):
        if not used.again(path.casefold()):
            yield Drop("text without an image", source, path)


def _texts(folder: SplitFolder) -> Iterator[str]:
    """The .txt files in a folder of images, and in the folders of texts beside its last folder `images`."""
    before, inner, after = f"{folder.path}{os.sep}".rpartition(f"{os.sep}images{os.sep}")
    for path in (folder.path, *(Path(before, name, after) for name in TEXT_FOLDERS if inner)):
        if path.is_dir():
            yield from replace(folder, path=path).files(lambda name: name.lower().endswith(".txt"))


def _of_files(
    request: Request, names: Mapping[Path, str], folder: ImageFolder, source: str
) -> tuple[Iterator[RawItem | Drop], int | None]:
    """(items of all files, one after the other, and their number where it is known). names: of the files, for images
    that have none."""
    parts: list[Any] = []
    total: int | None = 0
    for path, name in names.items():
        kind = path.suffix.lower()
        if kind == ".parquet":
            part, count = pair_items.parquet(path, name, request, folder, source)
        elif kind == ".json" and _is_object(path):
            rows = partial(pair_items.object_rows, path, request.split)
            part, count = pair_items.joined(rows, folder, source), None
        else:
            whole = _row_file(path, request)
            images = ByImage(replace(whole, only=request.split) if whole.splits() else whole)
            part, count = pair_items.grouped(images, name, folder, source), len(images)
        parts.append(part)
        total = total + count if total is not None and count is not None else None
    every = (item for part in parts for item in part)
    return pair_items.once(every) if len(parts) > 1 else every, total


def _row_file(path: Path, request: Request) -> RowFile:
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv", ".txt", ".token"):
        return table(path, request.image_column, request.text_column)
    if kind in (".jsonl", ".ndjson", ".json"):
        form = "list" if kind == ".json" else "lines"
        return RowFile(path, form, request.image_column, request.text_column, split=SPLIT)
    raise ConversionError(f"{path}: texts come from a .csv, .tsv, .jsonl, .json or .parquet file")
