"""Your own image-text pairs, in the forms they usually have.

RAW holds images, and texts come from --annotations FILE: .csv or .tsv with a header (filepath, image, ... and title,
caption, ...), .jsonl, or .json: a list of {"image", "caption"} (ALBEF, BLIP, LAVIS), COCO's captions, or Karpathy's
split file. Without --annotations: any WebDataset tars in RAW, or images with a .txt of the same name beside them.
Images are looked for under --images, else RAW.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert import web_pairs
from fiber.data.convert.coco_format import identity
from fiber.data.convert.image_folder import EXTENSIONS, ImageFolder
from fiber.data.convert.items import ConversionError, Drop, RawDataset, RawImage, RawItem, Request, existing
from fiber.data.convert.json_stream import Grouped, has_array, iter_array, open_text

SPLITS = ("train", "val", "test")
LICENCE = "that of your images and texts"
NAMES = ("filepath", "file_name", "filename", "image", "image_path", "img", "path", "file")
TEXTS = ("caption", "captions", "title", "text", "sentence", "sentences", "raw")

Row = tuple[Any, Any]  # name of the image, and its text or texts


def read(request: Request) -> RawDataset:
    """One record per image, with all texts of it that follow each other in the file."""
    name = request.raw.resolve().name
    roots = [request.images] if request.images else [request.raw, request.raw / "images"]
    provenance: dict[str, Any] = {"converter": "pairs", "folder": name}
    if request.annotations is None:
        if any(request.raw.glob("*.tar")):
            items = web_pairs.tars(request.raw, name)
        elif any(request.raw.rglob("*.txt")):
            items = _beside(request.raw, name)
        else:
            raise ConversionError(
                f"{request.raw}: no tars and no .txt beside the images; name a .csv, .tsv, .jsonl or .json file of "
                "texts by --annotations"
            )
        return RawDataset(name, request.split, LICENCE, provenance, items)
    path = existing([request.annotations, request.raw / request.annotations], "the texts")
    provenance |= {"file": path.name, "bytes": path.stat().st_size}
    items = _joined(_rows(path, request.split), ImageFolder(roots), name)
    return RawDataset(name, request.split, LICENCE, provenance, items)


def _beside(folder: Path, source: str) -> Iterator[RawItem | Drop]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in EXTENSIONS:
            continue
        name, text = path.relative_to(folder).as_posix(), path.with_suffix(".txt")
        if text.is_file():
            caption = text.read_text(encoding="utf-8", errors="replace")
            yield _item(source, name, [caption], RawImage((str(path),)))
        else:
            yield Drop("no caption", f"{source}_{name}", f"no {text.name} beside it")


def _joined(rows: Iterator[Row | Drop], folder: ImageFolder, source: str) -> Iterator[RawItem | Drop]:
    """Rows of one image after each other become one record; if it comes again later, it is counted."""
    taken: set[str] = set()
    waiting: tuple[str, list[Any]] | None = None
    for row in rows:
        if isinstance(row, Drop):
            yield row
            continue
        name, texts = str(row[0]), row[1] if isinstance(row[1], list) else [row[1]]
        if waiting is not None and waiting[0] == name:
            waiting[1].extend(texts)
            continue
        if waiting is not None:
            yield _item(source, waiting[0], waiting[1], folder.find(waiting[0]))
        waiting = None
        if name in taken:
            yield Drop("image listed again later", f"{source}_{name}", "sort the file by image")
            continue
        taken.add(name)
        waiting = (name, list(texts))
    if waiting is not None:
        yield _item(source, waiting[0], waiting[1], folder.find(waiting[0]))


def _item(source: str, name: str, texts: list[Any], image: RawImage) -> RawItem:
    record = {"image_id": f"{source}_{name}", "source": source, "captions": [{"text": text} for text in texts]}
    return RawItem(record, (image,))


def _rows(path: Path, split: str) -> Iterator[Row | Drop]:
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from _table(path, "\t" if kind == ".tsv" else ",")
    elif kind == ".jsonl":
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield _row(json.loads(line), f"{path.name}, line {number}")
                    except (ValueError, RecursionError) as error:
                        yield Drop("line malformed", f"{path.name}, line {number}", str(error)[:200])
    elif kind == ".json":
        yield from _json(path, split)
    else:
        raise ConversionError(f"{path}: texts come from a .csv, .tsv, .jsonl or .json file")


def _table(path: Path, separator: str) -> Iterator[Row | Drop]:
    with open_text(path) as file:
        try:
            rows = csv.reader(file, delimiter=separator)
            header = [column.strip().lower() for column in next(rows, [])]
            name = next((header.index(column) for column in NAMES if column in header), None)
            text = next((header.index(column) for column in TEXTS if column in header), None)
            if name is None or text is None:
                raise ConversionError(
                    f"{path}: the header {header!r:.200} must have a column of images ({', '.join(NAMES)}) and one "
                    f"of texts ({', '.join(TEXTS)})"
                )
            for row in rows:
                if len(row) == len(header):
                    yield row[name], row[text]
                elif row:
                    yield Drop(
                        "row malformed", f"{path.name}, line {rows.line_num}", f"{len(row)} columns: {row!r:.100}"
                    )
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConversionError(f"{path}: not a table in UTF-8: {error}") from None


def _json(path: Path, split: str) -> Iterator[Row | Drop]:
    with open(path, "rb") as file:
        first = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if first == b"[":
        for number, entry in enumerate(iter_array(path)):
            yield _row(entry, f"{path.name}, entry {number}")
        return
    captions = None
    if has_array(path, "annotations"):
        captions = Grouped(path, "annotations", lambda entry: identity(entry["image_id"]))
    for number, image in enumerate(iter_array(path, "images")):
        where = f"{path.name}, image {number}"
        if isinstance(image, dict) and captions is not None:
            texts = [entry.get("caption") for entry in captions[identity(image.get("id"))]]
            yield _row({**image, "caption": texts}, where)
        elif not isinstance(image, dict) or image.get("split", split) in (split, "restval"):
            yield _row(image, where)


def _row(entry: Any, where: str) -> Row | Drop:
    """(name, texts) of an entry; sentences are Karpathy's objects or plain texts."""
    if not isinstance(entry, dict):
        return Drop("entry malformed", where, f"{entry!r:.200}")
    name = next((entry[key] for key in NAMES if isinstance(entry.get(key), str) and entry[key]), None)
    texts = next((entry[key] for key in TEXTS if entry.get(key)), None)
    if name is None or texts is None:
        lacks = ", ".join(NAMES if name is None else TEXTS)
        return Drop("entry malformed", where, f"has none of {lacks}: {entry!r:.200}")
    if isinstance(texts, list):
        texts = [text.get("raw") if isinstance(text, dict) else text for text in texts]
    return name, texts
