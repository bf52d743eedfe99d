"""Rows of (image, texts) in text files of any length: tables, JSON lines, and lists in JSON.

Rows of one image may lie anywhere in the file and become one record. So the file is read twice: first for whose row
each is and where it lies (a hash of the image's name, offset, length), then in the order in which images come first,
each row again at its place, which keeps 28 bytes per row. Where rows of an image lie together, as in most files,
nothing is kept, and the second reading goes from front to back.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fiber.data.convert.items import ConversionError, Drop
from fiber.data.convert.json_stream import iter_places, open_text
from fiber.data.convert.pair_images import is_base64

NAMES = ("filepath", "file_name", "filename", "image", "image_path", "image_name", "image_file", "img", "img_path",
         "path", "file", "url", "image_url", "img_url", "bytes", "image_bytes", "jpg", "png")  # fmt: skip
TEXTS = ("caption", "captions", "title", "text", "texts", "sentence", "sentences", "raw", "comment", "description",
         "alt_text", "alt", "txt", "prompt", "top_caption")  # fmt: skip
SEPARATORS = {".csv": ",;|\t", ".tsv": "\t", ".txt": ",\t|", ".token": "\t"}

csv.field_size_limit(1 << 25)  # characters of one cell: an image may be one
Row = tuple[str, list[Any]]
"""Name of the image (or the image itself, as base64), and its texts."""


@dataclass(frozen=True)
class RowFile:
    """A file of rows, and which of its columns (or keys) are used.

    kind: "table", "lines" or "list". image, text: keys; of a table the numbers of its columns, of `width` columns,
    after `skip` lines of header.
    """

    path: Path
    kind: str
    image: Any
    text: Any
    separator: str = ","
    width: int = 0
    skip: int = 0

    def parse(self, data: bytes, where: str) -> Row | Drop:
        """The row that lies in some bytes of the file."""
        if self.kind == "table":
            rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=self.separator)
            return self._cells(next(rows), where)
        try:
            return json_row(json.loads(data), where, self.image, self.text)
        except (ValueError, RecursionError) as error:
            return Drop("line malformed", where, str(error)[:200])

    def _cells(self, row: list[str], where: str) -> Row | Drop:
        if len(row) != self.width:
            return Drop("row malformed", where, f"{len(row)} columns: {row!r:.100}")
        return row[self.image], [row[self.text]]

    def places(self) -> Iterator[tuple[Row | Drop, int, int]]:
        """(row, byte offset, byte length) of every row, in the order of the file."""
        if self.kind == "table":
            yield from self._table_places()
        elif self.kind == "list":
            for number, (value, offset, length) in enumerate(iter_places(self.path)):
                row = json_row(value, f"{self.path.name}, entry {number}", self.image, self.text)
                yield row, offset, length
        else:
            offset = 0
            with open(self.path, "rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        clean = line.removeprefix(b"\xef\xbb\xbf")
                        place = offset + len(line) - len(clean)
                        yield self.parse(clean, f"{self.path.name}, line {number}"), place, len(clean)
                    offset += len(line)

    def _table_places(self) -> Iterator[tuple[Row | Drop, int, int]]:
        end = 0

        def lines() -> Iterator[str]:
            nonlocal end
            with open(self.path, "rb") as file:
                for line in file:
                    end += len(line)
                    yield line.decode("utf-8-sig" if end == len(line) else "utf-8")

        try:
            rows = csv.reader(lines(), delimiter=self.separator)
            for _ in range(self.skip):
                next(rows, None)
            start = end
            for row in rows:  # the reader takes exactly the lines of a row
                if row:
                    yield self._cells(row, f"{self.path.name}, line {rows.line_num}"), start, end - start
                start = end
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConversionError(f"{self.path}: not a table in UTF-8: {error}") from None


def table(path: Path, image: str | None, text: str | None) -> RowFile:
    """A table with its columns found: those named, or of usual names; numbers name columns of a table without a
    header. Raises ConversionError."""
    with open_text(path) as file:
        try:
            first = file.readline(1 << 20).rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ConversionError(f"{path}: not a table in UTF-8: {error}") from None
    header: list[str] = []
    for separator in SEPARATORS.get(path.suffix.lower(), ",\t"):
        cells = [cell.strip() for cell in next(csv.reader([first], delimiter=separator), [])]
        if image is not None and text is not None and image.isdigit() and text.isdigit():
            if max(int(image), int(text)) < len(cells):
                return RowFile(path, "table", int(image), int(text), separator, len(cells))
            continue
        header = [cell.lower() for cell in cells]
        columns = _column(header, image, NAMES), _column(header, text, TEXTS)
        if None not in columns:
            return RowFile(path, "table", *columns, separator, len(cells), 1)
    wanted = f"images ({image or ', '.join(NAMES)}) and one of texts ({text or ', '.join(TEXTS)})"
    raise ConversionError(f"{path}: the header {header!r:.200} must have a column of {wanted}; others are named by "
                          "--image-column and --text-column")  # fmt: skip


def _column(header: list[str], name: str | None, usual: tuple[str, ...]) -> int | None:
    wanted = (name.lower(),) if name is not None else usual
    return next((header.index(column) for column in wanted if column in header), None)


def json_row(entry: Any, where: str, image: str | None = None, text: str | None = None) -> Row | Drop:
    """(name, texts) of an object; sentences are Karpathy's objects or plain texts."""
    if not isinstance(entry, dict):
        return Drop("entry malformed", where, f"{entry!r:.200}")
    names, keys = (image,) if image else NAMES, (text,) if text else TEXTS
    name = next((entry[key] for key in names if isinstance(entry.get(key), str) and entry[key]), None)
    texts = next((entry[key] for key in keys if entry.get(key)), None)
    if name is None or texts is None:
        lacks = ", ".join(names if name is None else keys)
        return Drop("entry malformed", where, f"has none of {lacks}: {entry!r:.200}")
    if not isinstance(texts, list):
        texts = [texts]
    return name, [one.get("raw") if isinstance(one, dict) else one for one in texts]


class ByImage:
    """The rows of a file by image: iterating gives (name, texts, offset, length), images in the order in which they
    come first, offset and length those of the first row; Drops for rows that cannot be used. len() counts images."""

    def __init__(self, rows: RowFile) -> None:
        self.rows = rows
        self._scattered: tuple[np.ndarray, np.ndarray, array, array] | None = None  # order, first row, offset, length
        hashes, offsets, lengths = array("Q"), array("q"), array("i")
        runs, last = 0, None
        for number, (row, offset, length) in enumerate(rows.places()):
            own = _owner(row, number)
            runs, last = runs + (own != last), own
            hashes.append(own)
            offsets.append(offset)
            lengths.append(length)
        every = np.frombuffer(hashes, np.uint64) if len(hashes) else np.zeros(0, np.uint64)
        self._images = int(np.count_nonzero(np.diff(np.sort(every)))) + bool(len(every))
        if runs > self._images:
            self._scattered = *_by_first(every), offsets, lengths

    def __len__(self) -> int:
        return self._images

    def _in_order(self) -> Iterator[tuple[int, Row | Drop, int, int]]:
        """(whose row it is, row, offset, length), rows of one image together."""
        if self._scattered is None:
            for number, (row, offset, length) in enumerate(self.rows.places()):
                yield _owner(row, number), row, offset, length
            return
        order, first, offsets, lengths = self._scattered
        with open(self.rows.path, "rb") as file:
            for number in map(int, order):
                offset, length = offsets[number], lengths[number]
                where = f"{self.rows.path.name}, byte {offset}"
                row = self.rows.parse(os.pread(file.fileno(), length, offset), where)
                yield int(first[number]), row, offset, length

    def __iter__(self) -> Iterator[tuple[str, list[Any], int, int] | Drop]:
        waiting: dict[str, tuple[str, list[Any], int, int]] = {}
        last: int | None = None
        for owner, row, offset, length in self._in_order():
            if owner != last:
                yield from waiting.values()
                waiting, last = {}, owner
            if isinstance(row, Drop):
                yield row
            elif row[0] in waiting:  # two names of one hash stay apart
                waiting[row[0]][1].extend(row[1])
            else:
                waiting[row[0]] = (row[0], row[1], offset, length)
        yield from waiting.values()


def _owner(row: Row | Drop, number: int) -> int:
    """Equal for rows of one image; a row without a name, or with the image itself, belongs to no other."""
    return _hash(f"\n{number}" if isinstance(row, Drop) or is_base64(row[0]) else row[0])


def _by_first(owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) uint64 -> (the order of rows by the first row of their owner, and that first row), both int64 (N,)."""
    by_owner = np.argsort(owners, kind="stable")  # rows of an owner in the order of the file
    starts = np.flatnonzero(np.concatenate([[True], np.diff(owners[by_owner]) != 0]))
    first = np.empty(len(owners), np.int64)
    first[by_owner] = np.repeat(by_owner[starts], np.diff(starts, append=len(owners)))
    return np.argsort(first, kind="stable"), first


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "big")
