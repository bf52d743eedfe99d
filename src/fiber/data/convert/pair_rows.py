"""Rows of (image, texts) in text files of any length: tables, JSON lines, and lists in JSON.

A column `split` divides the rows; without one they are all of one split.

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
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fiber.data.convert.image_folder import is_image
from fiber.data.convert.items import ConversionError, Drop
from fiber.data.convert.json_stream import NOT_UTF8, first_line, iter_places
from fiber.data.convert.pair_images import is_base64
from fiber.data.convert.splits import split_of

NAMES = ("filepath", "file_name", "filename", "image", "image_path", "image_name", "image_file", "img", "img_path",
         "path", "file", "url", "image_url", "img_url", "bytes", "image_bytes", "jpg", "png")  # fmt: skip
TEXTS = ("caption", "captions", "title", "text", "texts", "sentence", "sentences", "raw", "comment", "description",
         "alt_text", "alt", "txt", "prompt", "top_caption")  # fmt: skip
SEPARATORS = {".csv": ",;|\t", ".tsv": "\t", ".txt": ",\t|", ".token": "\t"}
SPLIT = "split"  # the column or key that says of which split a row is
_NUMBERED = re.compile("#[0-9]+$")  # Flickr's name of an image's second text: 1000092795.jpg#1

csv.field_size_limit(1 << 25)  # characters of one cell: an image may be one
Row = tuple[str, list[Any]]
"""Name of the image (or the image itself, as base64), and its texts."""


@dataclass(frozen=True)
class RowFile:
    """A file of rows, and which of its columns (or keys) are used.

    kind: "table", "lines" or "list". image, text: keys; of a table the numbers of its columns, of `width` columns,
    after `skip` lines of header. split: key or column of a row's split (None: there is none), of which only the rows
    of `only` are given.
    """

    path: Path
    kind: str
    image: Any
    text: Any
    separator: str = ","
    width: int = 0
    skip: int = 0
    split: Any = None
    only: str | None = None

    def parse(self, data: bytes, where: str) -> Row | Drop:
        """The row that lies in some bytes of the file."""
        if self.kind == "table":
            return self._row(next(self._cells(io.StringIO(data.decode("utf-8-sig"), newline=""))), where)
        return self._row(_loaded(data), where)

    def _cells(self, lines: Iterable[str]) -> Any:
        """The reader of a table's lines. Flickr's .token files put no quotes around texts, which have quotes of
        their own."""
        if ".token" in self.path.suffixes:
            return csv.reader(lines, delimiter=self.separator, quoting=csv.QUOTE_NONE)
        return csv.reader(lines, delimiter=self.separator)

    def _row(self, value: Any, where: str) -> Row | Drop:
        """Of the cells of a table, of an object in JSON, or of the error in its place."""
        if isinstance(value, Exception):
            return Drop("line malformed", where, str(value)[:200])
        if self.kind != "table":
            return json_row(value, where, self.image, self.text)
        if len(value) != self.width:
            return Drop("row malformed", where, f"{len(value)} columns: {value!r:.100}")
        name = value[self.image]
        bare = _NUMBERED.sub("", name)
        return bare if is_image(bare) else name, [value[self.text]]

    def splits(self) -> set[str]:
        """Those that the column of splits names; none where there is no such column, or no split in it."""
        if self.split is None or not has_split(value for value, *_ in self._values()):
            return set()
        return {split for value, *_ in self._values() if (split := named_split(self._split(value)))}

    def _split(self, value: Any) -> Any:
        """What a row says of its split; None where it says nothing."""
        if self.kind == "table":
            return value[self.split] if len(value) == self.width else None
        return value.get(self.split) if isinstance(value, dict) else None

    def places(self) -> Iterator[tuple[Row | Drop, int, int]]:
        """(row, byte offset, byte length) of every row of the split, in the order of the file."""
        for value, offset, length, where in self._values():
            if not self.only:
                yield self._row(value, where), offset, length
            elif mine := of_split(self._split(value), self.only, where):
                row = self._row(value, where)  # where it is malformed, that is said, whatever its split
                yield mine if isinstance(mine, Drop) and not isinstance(row, Drop) else row, offset, length

    def _values(self) -> Iterator[tuple[Any, int, int, str]]:
        """(what the file has, byte offset, byte length, where) of every row."""
        if self.kind == "table":
            yield from self._table_values()
        elif self.kind == "list":
            for number, (value, offset, length) in enumerate(iter_places(self.path)):
                yield value, offset, length, f"{self.path.name}, entry {number}"
        else:
            offset = 0
            with open(self.path, "rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        clean = line.removeprefix(b"\xef\xbb\xbf")
                        place = offset + len(line) - len(clean)
                        yield _loaded(clean), place, len(clean), f"{self.path.name}, line {number}"
                    offset += len(line)

    def _table_values(self) -> Iterator[tuple[list[str], int, int, str]]:
        end = 0

        def lines() -> Iterator[str]:
            nonlocal end
            with open(self.path, "rb") as file:
                for line in file:
                    end += len(line)
                    yield line.decode("utf-8-sig" if end == len(line) else "utf-8")

        try:
            rows = self._cells(lines())
            for _ in range(self.skip):
                next(rows, None)
            start = end
            for row in rows:  # the reader takes exactly the lines of a row
                if row:
                    yield row, start, end - start, f"{self.path.name}, line {rows.line_num}"
                start = end
        except UnicodeDecodeError as error:
            raise ConversionError(f"{self.path}: {NOT_UTF8}: {error}") from None
        except csv.Error as error:
            raise ConversionError(f"{self.path}: not a table: {error}") from None


def _loaded(data: bytes) -> Any:
    """The value of a line of JSON, or the error that it is."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        return error


def named_split(value: Any) -> str | None:
    """train, val or test of what a row says: "valid", "Test", Karpathy's "restval" (trained on); None of others."""
    if not isinstance(value, str):
        return None
    return "train" if value.strip().lower() == "restval" else split_of(value)


def has_split(entries: Iterable[Any]) -> bool:
    """Whether one of the first entries says of which split it is; rows of a table have a column for it."""
    return any(isinstance(one, list) or (isinstance(one, dict) and SPLIT in one) for one in islice(entries, 100))


def of_split(said: Any, only: str | None, where: str) -> bool | Drop:
    """Whether a row that says this of its split is of `only` (None: all are); a Drop where that is no split."""
    if only is None:
        return True
    named = named_split(said)
    return named == only if named else Drop("unknown split", where, f"{said!r:.100}")


def table(path: Path, image: str | None, text: str | None) -> RowFile:
    """A table with its columns found: those named, or of usual names; numbers name columns of a table without a
    header. Two columns without a header whose first has an image's name are images and texts. Raises
    ConversionError."""
    first = first_line(path)
    header: list[str] = []
    for separator in SEPARATORS.get(path.suffix.lower(), ",\t"):
        cells = [cell.strip() for cell in next(csv.reader([first], delimiter=separator), [])]
        if image is not None and text is not None and image.isdecimal() and text.isdecimal():
            if max(int(image), int(text)) < len(cells):
                return RowFile(path, "table", int(image), int(text), separator, len(cells))
            continue
        header = [cell.lower() for cell in cells]
        columns = _column(header, image, NAMES), _column(header, text, TEXTS)
        if None not in columns:
            split = header.index(SPLIT) if SPLIT in header else None
            return RowFile(path, "table", *columns, separator, len(cells), 1, split)
        if image is text is None and len(cells) == 2 and is_image(_NUMBERED.sub("", cells[0])) and _is_text(cells[1]):
            return RowFile(path, "table", 0, 1, separator, 2)
    wanted = f"images ({image or ', '.join(NAMES)}) and one of texts ({text or ', '.join(TEXTS)})"
    raise ConversionError(f"{path}: the header {first!r:.200} must have a column of {wanted}; others are named by "
                          "--image-column and --text-column")  # fmt: skip


def _is_text(cell: str) -> bool:
    """Whether a cell has a letter: the number of a class is no text."""
    return any(character.isalpha() for character in cell)


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
