"""Your own image-text pairs, in the forms they usually have, guessed from the folder.

SRC is a folder, or the file of texts in it: .csv or .tsv with a header (image, filepath, ... and caption, title,
...), .jsonl, .parquet, or .json: a list of {"image", "caption"} (ALBEF, BLIP, LAVIS), COCO's captions, or Karpathy's
split file. An image is a path, a URL (http), or its bytes (base64 in text files). Rows of one image become one
record. Or SRC holds WebDataset tars of any key names, or images with a .txt of the same name beside them. Images are
looked for under --images, else in SRC. --in-place uses tars as they lie.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert import web_pairs
from fiber.data.convert.boxes_coco import head_of
from fiber.data.convert.coco_format import identity
from fiber.data.convert.image_folder import EXTENSIONS, ImageFolder, is_image
from fiber.data.convert.items import ConversionError, Drop, RawDataset, RawImage, RawItem, Request, existing
from fiber.data.convert.json_stream import Grouped, has_array, iter_array
from fiber.data.convert.pair_images import ParquetImage, RowImage, UrlImage, is_base64, is_url, parquet_file, url_name
from fiber.data.convert.pair_rows import NAMES, TEXTS, ByImage, Row, RowFile, json_row, table
from fiber.data.convert.splits import files, files_of, folders_of, split_of, subfolders

SPLITS = ("train", "val", "test")
OPTIONS = ("raw", "annotations", "images", "image_column", "text_column", "image_key", "text_key", "in_place")
LICENCE = "that of your images and texts"
_TABLES, _LINES = (".csv", ".tsv", ".txt", ".token"), (".jsonl", ".ndjson", ".parquet")


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
    places = found.get(request.split) or (next(iter(found.values())) if len(found) == 1 else None)
    if places is None:
        raise ConversionError(f"{request.raw}: no split {request.split!r} here; it has {', '.join(found)}")
    provenance: dict[str, Any] = {"converter": "pairs", "form": kind, "folder": name}
    total = None
    if kind == "tars":
        items: Iterator[RawItem | Drop] = web_pairs.tars(places, name, request.image_key, request.text_key)
    elif kind == "images with .txt beside them":
        items = _beside(places[0], name)
    else:
        provenance |= {"file": _described(places), "bytes": sum(path.stat().st_size for path in places)}
        roots = [request.images] if request.images else [folder, folder / "images"]
        items, total = _of_files(request, places, ImageFolder(roots), name)
    tars = places if kind == "tars" else []
    return RawDataset(name, request.split, LICENCE, provenance, items, total, tars=tars)


def _described(places: list[Path]) -> str:
    return places[0].name + (f" and {len(places) - 1} more" if len(places) > 1 else "")


def _find(request: Request) -> tuple[str, dict[str, list[Path]]]:
    """(what the source is, split -> files or the folder)."""
    raw = request.raw
    if request.annotations is not None or raw.is_file():
        places = [request.annotations, raw / request.annotations] if request.annotations else [raw]
        path = existing(places, "the texts")
        return "texts in a file", {split: [path] for split in _splits_in(path)}
    if not raw.is_dir():
        raise ConversionError(f"{raw}: no such folder or file of texts")
    tars: dict[str, list[Path]] = {}
    for path in (path for folder in (raw, *_inner(raw)) for path in files_of(folder, "*.tar")):
        names = (path.stem,) if path.parent == raw else (path.parent.name, path.stem)
        tars.setdefault(split_of(*names) or "train", []).append(path)
    if tars:
        return "tars", tars
    texts: dict[str, list[Path]] = {}
    for folder in (raw, raw / "annotations", raw / "data"):
        for path in _lists(folder):
            for split in _splits_in(path) if _has_texts(path, request) else ():
                texts.setdefault(split, []).append(path)
    if texts:
        return "texts in files", texts
    for split, folders in folders_of(raw).items():
        if _has_pair(folders[0]):
            texts[split] = folders[:1]
    if texts or _has_pair(raw):
        return "images with .txt beside them", texts or {"train": [raw]}
    raise ConversionError(
        f"{raw}: no tars, no .txt beside the images, and no table or JSON of images ({', '.join(NAMES[:4])}, ...) "
        f"and texts ({', '.join(TEXTS[:4])}, ...); name a .csv, .tsv, .jsonl, .json or .parquet file by "
        "--annotations, its columns by --image-column and --text-column"
    )


def _splits_in(path: Path) -> list[str]:
    """Karpathy's file has all splits, any other the one of its name."""
    head = head_of(path) if path.suffix.lower() == ".json" else ""
    return list(SPLITS) if '"split"' in head and '"sentences"' in head else [split_of(path.stem) or "train"]


def _inner(raw: Path) -> list[Path]:
    return [path for path in subfolders(raw) if split_of(path.name)]


def _lists(folder: Path) -> list[Path]:
    """The files in a folder that may be lists of images: not those of one image, which are called like it."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        kinds = (*_TABLES, *_LINES, ".json")
        found = (entry.path for entry in entries if entry.name.lower().endswith(kinds) and entry.is_file())
        return sorted(map(Path, itertools.filterfalse(_belongs_to_an_image, found)))


def _belongs_to_an_image(path: str) -> bool:
    stem = os.path.splitext(path)[0]
    return any(os.path.exists(stem + end) for extension in EXTENSIONS for end in (extension, extension.upper()))


def _has_texts(path: Path, request: Request) -> bool:
    """Whether a file is one of images and texts."""
    kind = path.suffix.lower()
    if kind in _TABLES:
        try:
            table(path, request.image_column, request.text_column)
        except ConversionError:
            return False
        return True
    if kind == ".json":
        head = head_of(path).lstrip("\xef\xbb\xbf \t\r\n")
        if head[:1] == "{":
            first: dict[str, Any] = (
                next(iter_array(path, "annotations"), {}) if has_array(path, "annotations") else {}
            )
            return "caption" in first or '"sentences"' in head
        return head[:1] == "[" and any(f'"{key}"' in head for key in (request.text_column, *TEXTS) if key)
    return kind in _LINES


def _has_pair(folder: Path) -> bool:
    return any(Path(path).with_suffix(".txt").is_file() for path in files(folder, is_image))


def _beside(folder: Path, source: str) -> Iterator[RawItem | Drop]:
    for path in files(folder, is_image):
        name, text = Path(path).relative_to(folder).as_posix(), Path(path).with_suffix(".txt")
        if text.is_file():
            caption = text.read_text(encoding="utf-8", errors="replace")
            yield _item(source, name, [caption], RawImage((path,)))
        else:
            yield Drop("no caption", f"{source}_{name}", f"no {text.name} beside it")


def _item(source: str, name: str, texts: list[Any], image: RawImage) -> RawItem:
    record = {"image_id": f"{source}_{name}", "source": source, "captions": [{"text": text} for text in texts]}
    return RawItem(record, (image,))


def _of_files(
    request: Request, paths: list[Path], folder: ImageFolder, source: str
) -> tuple[Iterator[RawItem | Drop], int | None]:
    """(items of all files, one after the other, and their number where it is known)."""
    parts: list[Any] = []
    total: int | None = 0
    for path in paths:
        kind = path.suffix.lower()
        if kind == ".parquet":
            part, count = _parquet(path, request, folder, source)
        elif kind == ".json" and head_of(path).lstrip("\xef\xbb\xbf \t\r\n")[:1] != "[":
            part, count = _joined(_coco_rows(path, request.split), folder, source), None
        else:
            rows = ByImage(_row_file(path, request))
            part, count = _grouped(rows, folder, source), len(rows)
        parts.append(part)
        total = total + count if total is not None and count is not None else None
    return (item for part in parts for item in part), total


def _row_file(path: Path, request: Request) -> RowFile:
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv", ".txt", ".token"):
        return table(path, request.image_column, request.text_column)
    if kind in (".jsonl", ".ndjson", ".json"):
        return RowFile(path, "list" if kind == ".json" else "lines", request.image_column, request.text_column)
    raise ConversionError(f"{path}: texts come from a .csv, .tsv, .jsonl, .json or .parquet file")


def _grouped(rows: ByImage, folder: ImageFolder, source: str) -> Iterator[RawItem | Drop]:
    path = rows.rows.path
    for number, found in enumerate(rows):
        if isinstance(found, Drop):
            yield found
            continue
        name, texts, offset, length = found
        if is_base64(name):
            image: RawImage = RowImage((str(path),), offset, length, rows=rows.rows)
            yield _item(source, f"{path.stem}_{number:09d}", texts, image)
        else:
            yield _named(source, name, texts, folder)


def _named(source: str, name: str, texts: list[Any], folder: ImageFolder) -> RawItem:
    if is_url(name):
        return _item(source, url_name(name), texts, UrlImage((name,)))
    return _item(source, name, texts, folder.find(name))


def _joined(rows: Iterator[Row | Drop], folder: ImageFolder, source: str) -> Iterator[RawItem | Drop]:
    """Rows of a file that lists every image once; one that comes again is counted."""
    taken: set[int] = set()
    for row in rows:
        if isinstance(row, Drop):
            yield row
        elif hash(row[0]) in taken:
            yield Drop("image listed again later", f"{source}_{row[0]}", "each image once, with all its texts")
        else:
            taken.add(hash(row[0]))
            yield _named(source, row[0], row[1], folder)


def _coco_rows(path: Path, split: str) -> Iterator[Row | Drop]:
    """COCO's captions; Karpathy's file, of one split."""
    captions = None
    if has_array(path, "annotations"):
        captions = Grouped(path, "annotations", lambda entry: identity(entry["image_id"]))
    for number, image in enumerate(iter_array(path, "images")):
        where = f"{path.name}, image {number}"
        if isinstance(image, dict) and captions is not None:
            texts = [entry.get("caption") for entry in captions[identity(image.get("id"))]]
            yield json_row({**image, "caption": texts}, where)
        elif not isinstance(image, dict) or image.get("split", split) in (split, "restval"):
            yield json_row(image, where)


def _parquet(
    path: Path, request: Request, folder: ImageFolder, source: str
) -> tuple[Iterator[RawItem | Drop], int | None]:
    """Rows of a Parquet file. Images in it are read where they lie, one record per row; names and URLs are first
    written to a temporary file of lines, because rows of one image may lie anywhere."""
    file = parquet_file(path)
    columns = file.schema_arrow.names
    image = request.image_column or next((name for name in columns if name.lower() in NAMES), None)
    text = request.text_column or next((name for name in columns if name.lower() in TEXTS), None)
    if image is None or text is None or image not in columns or text not in columns:
        raise ConversionError(f"{path}: its columns are {', '.join(columns)[:200]}; name those of the images and of "
                              "the texts by --image-column and --text-column")  # fmt: skip
    kind = str(file.schema_arrow.field(image).type)
    if kind.startswith("struct") or "binary" in kind:
        return _parquet_images(path, image, text, source), file.metadata.num_rows
    lines = tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8")  # noqa: SIM115 (lives with the items)
    for batch in file.iter_batches(columns=[image, text]):
        for row in batch.to_pylist():
            lines.write(json.dumps({"image": row[image], "text": row[text]}) + "\n")
    lines.flush()
    rows = ByImage(RowFile(Path(lines.name), "lines", "image", "text"))

    def items() -> Iterator[RawItem | Drop]:
        with lines:
            yield from _grouped(rows, folder, source)

    return items(), len(rows)


def _parquet_images(path: Path, image: str, text: str, source: str) -> Iterator[RawItem]:
    file = parquet_file(path)
    for group in range(file.num_row_groups):
        texts = file.read_row_group(group, columns=[text]).column(0).to_pylist()
        for row, value in enumerate(texts):
            name = f"{path.stem}_{group:04d}_{row:06d}"
            place = ParquetImage((str(path),), row, group, column=image)
            yield _item(source, name, value if isinstance(value, list) else [value], place)
