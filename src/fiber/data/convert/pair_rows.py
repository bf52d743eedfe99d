"""Rows of (image, texts) in text files of any length: tables, JSON lines, and lists in JSON.

A column `split` divides the rows; without one they are all of one split. Rows of one image may lie anywhere in the
file and become one record (`by_image`).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

from fiber.data.convert.image_folder import is_image
from fiber.data.convert.items import ConversionError, Drop
from fiber.data.convert.json_stream import NOT_UTF8, first_line, iter_places
from fiber.data.convert.pair_images import is_url
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
            lines = self._quoted(io.StringIO(data.decode("utf-8-sig"), newline=""))
            return self._row(next(self._cells(lines)), where)
        return self._row(_loaded(data), where)

    def _cells(self, lines: Iterable[str]) -> Any:
        """The reader of a table's lines. Flickr's .token files put no quotes around texts, which have quotes of
        their own."""
        if ".token" in self.path.suffixes:
            return csv.reader(lines, delimiter=self.separator, quoting=csv.QUOTE_NONE)
        return csv.reader(lines, delimiter=self.separator)

    def _quoted(self, lines: Iterable[str]) -> Iterator[str]:
        """The lines, with quotes that enclose no cell made part of the text: a caption that begins with a quote would
        swallow the lines behind it, one with a quoted word at its beginning would lose the quotes."""
        if ".token" in self.path.suffixes:
            yield from lines
            return
        inside = False  # a cell that a quote encloses and that goes on over lines
        for line, following in pairwise(chain(lines, (None,))):
            assert line is not None
            if inside:
                inside = line.count('"') % 2 == 0
            elif '"' in line:
                try:
                    next(csv.reader([line], delimiter=self.separator, strict=True))
                except csv.Error as error:
                    inside = "end of data" in str(error)
                    if self._are_rows(line, following if inside else None):
                        cells = (cell.replace('"', '""') for cell in line.rstrip("\r\n").split(self.separator))
                        line, inside = self.separator.join(f'"{cell}"' for cell in cells) + "\n", False
            yield line

    def _are_rows(self, *lines: str | None) -> bool:
        """Whether each line, without regard to quotes, is a row with an image's name."""
        rows = [line.rstrip("\r\n").split(self.separator) for line in lines if line]
        names = [_NUMBERED.sub("", row[self.image].strip('"')) for row in rows if len(row) == self.width]
        return len(names) == len(rows) and all(is_image(name) or is_url(name) for name in names)

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
            with open(self.path, "rb") as file:
                for number, line in enumerate(file):
                    sizes.append(len(line))
                    yield line.decode("utf-8" if number else "utf-8-sig")

        def taken() -> Iterator[str]:
            nonlocal end
            for line in self._quoted(lines()):  # which has read one line more
                end += sizes.popleft()
                yield line

        try:
            sizes = deque[int]()
            rows = self._cells(taken())
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
    folder, file = entry.get("filepath"), entry.get("filename")
    if image is None and isinstance(folder, str) and isinstance(file, str) and not is_image(folder):
        entry = {**entry, "filepath": f"{folder}/{file}"}  # Karpathy's of COCO
    names, keys = (image,) if image else NAMES, (text,) if text else TEXTS
    name = next((entry[key] for key in names if isinstance(entry.get(key), str) and entry[key]), None)
    texts = next((entry[key] for key in keys if entry.get(key)), None)
    if name is None or texts is None:
        lacks = ", ".join(names if name is None else keys)
        return Drop("entry malformed", where, f"has none of {lacks}: {entry!r:.200}")
    if not isinstance(texts, list):
        texts = [texts]
    return name, [one.get("raw") if isinstance(one, dict) else one for one in texts]
