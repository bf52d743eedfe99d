"""Rows of images and texts -> the items of a set: of text files, of COCO's and Karpathy's JSON, of Parquet files."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fiber.data.convert import json_stream
from fiber.data.convert.boxes_coco import head_of
from fiber.data.convert.by_image import ByImage
from fiber.data.convert.coco_format import identity, image_of, of_unlisted, twice
from fiber.data.convert.file_names import FileNames
from fiber.data.convert.image_folder import ImageFolder, is_image
from fiber.data.convert.items import ConversionError, Drop, RawImage, RawItem, Request
from fiber.data.convert.json_stream import Grouped, has_array, iter_array
from fiber.data.convert.pair_images import ParquetImage, RowImage, UrlImage, is_base64, is_url, parquet_file, url_name
from fiber.data.convert.pair_rows import (
    NAMES,
    SPLIT,
    TEXTS,
    Row,
    RowFile,
    has_split,
    json_row,
    named_split,
    of_split,
)  # fmt: skip
from fiber.data.convert.seen import Seen


def item(source: str, name: str, texts: list[Any], image: RawImage) -> RawItem:
    record = {"image_id": f"{source}_{name}", "source": source, "captions": [{"text": text} for text in texts]}
    return RawItem(record, (image,))


def grouped(rows: ByImage, called: str, folder: ImageFolder, source: str) -> Iterator[RawItem | Drop]:
    """called: what images that lie in the file itself are called after."""
    path = rows.rows.path
    files = Seen()
    for number, found in enumerate(rows):
        if isinstance(found, Drop):
            yield found
            continue
        name, texts, offset, length = found
        if is_base64(name):
            image: RawImage = RowImage((str(path),), offset, length, rows=rows.rows)
            yield item(source, f"{called}_{number:09d}", texts, image)
        else:
            one = named(source, name, texts, partial(rows.names.find, folder))
            place = one.images[0].paths[0]
            again = Drop("file listed more than once", one.image_id, f"{place} again")
            yield again if files.again(place) else one


def named(source: str, name: str, texts: list[Any], find: Callable[[str], RawImage]) -> RawItem:
    """find: a name's file."""
    if is_url(name):
        return item(source, url_name(name), texts, UrlImage((name,)))
    image = find(name)
    if name != name.strip() and not any(map(os.path.isfile, image.paths)):  # blanks around a cell
        image = find(name.strip())
    return item(source, name, texts, image)


def joined(rows: Callable[[], Iterator[Row | Drop]], folder: ImageFolder, source: str) -> Iterator[RawItem | Drop]:
    """Rows of a file that lists every image once; one that comes again is counted."""
    seen = Seen()
    names = FileNames(dict.fromkeys(row[0] for row in rows() if not isinstance(row, Drop)))
    for row in rows():
        if isinstance(row, Drop):
            yield row
        elif seen.again(row[0]):
            yield Drop("image listed again later", f"{source}_{row[0]}", "each image once, with all its texts")
        else:
            yield named(source, row[0], row[1], partial(names.find, folder))


def once(items: Iterator[RawItem | Drop]) -> Iterator[RawItem | Drop]:
    """Of several files: an image that another one has listed already is counted, it is no second record."""
    seen = Seen()
    for one in items:
        if isinstance(one, RawItem) and seen.again(one.image_id):
            yield Drop("image listed in another file, too", one.image_id, "name the right file by --annotations")
        else:
            yield one


def image_splits(path: Path) -> set[str]:
    """Those that the images of COCO's or Karpathy's JSON name."""
    if not has_array(path, "images") or not has_split(iter_array(path, "images")):
        return set()
    images = (image for image in iter_array(path, "images") if isinstance(image, dict))
    return {split for image in images if (split := named_split(image.get(SPLIT)))}


def is_mapping(path: Path) -> bool:
    """Whether a file is an object of images and their texts: {"1.jpg": "a dog", "2.jpg": ["a cat", "a pet"]}."""
    first = re.match(r'\{\s*("(?:[^"\\]|\\.)*")\s*:\s*["\[]', head_of(path).lstrip("\xef\xbb\xbf \t\r\n"))
    return first is not None and is_image(json.loads(first[1], strict=False))


def object_rows(path: Path, split: str) -> Iterator[Row | Drop]:
    """An object of images and texts; COCO's captions; Karpathy's file, of one split."""
    if is_mapping(path):
        for name, texts in json_stream.load(path).items():
            yield name, texts if isinstance(texts, list) else [texts]
        return
    only = split if image_splits(path) else None
    captions = Grouped(path, "annotations", image_of) if has_array(path, "annotations") else None
    seen, met = Seen(), 0
    for number, image in enumerate(iter_array(path, "images")):
        where = f"{path.name}, image {number}"
        if isinstance(image, dict) and captions is not None and "id" in image:
            if seen.again(key := identity(image["id"])):
                raise twice(path, image["id"])
            met += key in captions
            texts = [entry.get("caption") for entry in captions[key]]
            image = {**image, "caption": texts}
        mine = of_split(image.get(SPLIT), only, where) if isinstance(image, dict) else True
        if mine:
            yield mine if isinstance(mine, Drop) else json_row(image, where)
    if captions is not None:
        yield from captions.malformed(path.name)
        yield from of_unlisted(captions, met, path.name)


def parquet(
    path: Path, called: str, request: Request, folder: ImageFolder, source: str
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
    only = request.split if parquet_splits(path) else None
    kind = str(file.schema_arrow.field(image).type)
    if kind.startswith("struct") or "binary" in kind:
        return _parquet_images(
            path, called, image, text, source, only
        ), file.metadata.num_rows if only is None else None
    temporary = tempfile.TemporaryDirectory()  # lives with the items
    with open(
        lines := Path(temporary.name) / path.name, "w", encoding="utf-8"
    ) as out:  # named as what is wrong in it
        for batch in file.iter_batches(columns=[image, text] + [SPLIT] * (only is not None)):
            for row in batch.to_pylist():
                out.write(json.dumps({"image": row[image], "text": row[text], SPLIT: row.get(SPLIT)}) + "\n")
    rows = ByImage(RowFile(lines, "lines", "image", "text", split=SPLIT, only=only))

    def items() -> Iterator[RawItem | Drop]:
        with temporary:
            yield from grouped(rows, called, folder, source)

    return items(), len(rows)


def parquet_splits(path: Path) -> set[str]:
    """Those that its column of splits names; none where there is no such column, or no split in it."""
    file = parquet_file(path)
    if SPLIT not in file.schema_arrow.names:
        return set()
    return {split for value in file.read([SPLIT])[SPLIT].unique().to_pylist() if (split := named_split(value))}


def _parquet_images(
    path: Path, called: str, image: str, text: str, source: str, only: str | None
) -> Iterator[RawItem | Drop]:
    file = parquet_file(path)
    for group in range(file.num_row_groups):
        values = file.read_row_group(group, columns=[text] + [SPLIT] * (only is not None)).to_pylist()
        for row, value in enumerate(values):
            name = f"{called}_{group:04d}_{row:06d}"
            mine = of_split(value.get(SPLIT), only, f"{source}_{name}")
            if isinstance(mine, Drop):
                yield mine
            elif mine:
                texts = value[text] if isinstance(value[text], list) else [value[text]]
                yield item(source, name, texts, ParquetImage((str(path),), row, group, column=image))
