"""JSON files of gigabytes, read element by element.

The annotation files of this field are one JSON object holding arrays of millions of small objects (or just such an
array). ``iter_array`` yields the elements of one array without loading the file. ``Grouped`` joins: it remembers for
each element of an array only where it lies in the file (12 bytes) and reads the elements of a group back on
request, so a million annotations cost megabytes whatever their polygons weigh.

Files are scanned as latin-1, in which a character is a byte, so positions are file offsets; each element is then
parsed from its own bytes as UTF-8.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

import numpy as np

from fiber.data.convert.items import ConversionError, Drop

K = TypeVar("K", bound=Hashable)

_CHUNK = 1 << 20
_LARGEST = 64 << 20  # an element that does not end within this is broken, not long
_BLANK = " \t\r\n"
_INCOMPLETE = "a file that was downloaded is perhaps incomplete"
NOT_UTF8 = "not UTF-8 (perhaps Latin-1 or GBK): save it as UTF-8"


def load(path: Path) -> Any:
    """A small JSON file whole. Raises ConversionError naming the file if absent or broken."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ConversionError(f"{path}: {_unopened(error)}") from None
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path}: {NOT_UTF8}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: broken JSON: {error or 'nested too deep'}; {_INCOMPLETE}") from None


def _unopened(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"


def _scan_lines(path: Path) -> Iterator[tuple[Any, int, int]]:
    """(value, byte offset, byte length) of the lines of a JSON-lines file, None as the value of one that does not
    parse; blank lines are skipped."""
    offset = 0
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed by the with below)
    except OSError as error:
        raise ConversionError(f"{path}: {_unopened(error)}") from None
    with file:
        for line in file:
            if line.strip():
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    value = None  # as a line without the keys it needs: left out and counted
                yield value, offset, len(line)
            offset += len(line)


def first_line(path: Path) -> str:
    """The first line of a text file (at most 2^20 characters), without its end. Raises ConversionError."""
    with open_text(path) as file:
        line = file.readline(1 << 20).rstrip("\r\n")
    if "\r" in line:
        raise ConversionError(f"{path}: its lines end as on an old Mac (CR alone): save it with LF or CR LF")
    return line


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file, with one clear error if it is absent or turns out to be in another encoding. A byte order
    mark is skipped."""
    try:
        file = open(path, encoding="utf-8-sig", newline="\n")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise ConversionError(f"{path}: {_unopened(error)}") from None
    try:
        with file:
            yield file
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path}: {NOT_UTF8}: {error}") from None


def iter_array(path: Path, name: str | None = None) -> Iterator[Any]:
    """The elements of the array ``name`` of the object in ``path`` (None: the file is itself an array), in order."""
    for value, _, _ in _Scanner(path).elements(name):
        yield value


def iter_places(path: Path, name: str | None = None) -> Iterator[tuple[Any, int, int]]:
    """As iter_array, and where each element lies: (element, byte offset, byte length)."""
    yield from _Scanner(path).elements(name)


def count_array(path: Path, name: str | None = None) -> int:
    """Number of elements of that array (one pass over the file)."""
    return sum(1 for _ in _Scanner(path).elements(name))


def has_array(path: Path, name: str) -> bool:
    """Whether the file is an object with a non-empty array of that name (reads only as far as needed)."""
    return next(_Scanner(path).elements(name, missing_ok=True), None) is not None


class Grouped(Generic[K]):
    """The elements of one array, by group: ``grouped[key] -> list`` in file order ([] where there are none)."""

    def __init__(self, path: Path, name: str | None, key: Callable[[Any], K], lines: bool = False) -> None:
        """One pass over the file. ``key``: group of an element, from the element; one without is `malformed`. Raises
        ConversionError.

        lines: the file is JSON lines (``name`` is not looked at), else ``name`` is the array as in iter_array.
        """
        self._path = path
        self._groups: dict[K, int] = {}  # in order of first occurrence
        groups, offsets, lengths = array("i"), array("q"), array("i")
        for value, offset, length in _scan_lines(path) if lines else _Scanner(path).elements(name):
            try:
                group = self._groups.setdefault(key(value), len(self._groups))
            except (KeyError, TypeError, IndexError, AttributeError):
                group = -1
            groups.append(group)
            offsets.append(offset)
            lengths.append(length)
        group_of = np.frombuffer(groups, np.int32) if len(groups) else np.zeros(0, np.int32)
        order = np.argsort(group_of, kind="stable")
        self._starts = np.searchsorted(group_of[order], np.arange(len(self._groups) + 1))
        self._offsets = np.array(offsets, np.int64)[order]
        self._lengths = np.array(lengths, np.int32)[order]
        self._file = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def __iter__(self) -> Iterator[K]:
        """Groups in order of first occurrence."""
        return iter(self._groups)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._groups

    def __len__(self) -> int:
        """Number of groups."""
        return len(self._groups)

    def __getitem__(self, key: K) -> list[Any]:
        group = self._groups.get(key)
        if group is None:
            return []
        return [json.loads(element) for element in self._read(int(self._starts[group]), int(self._starts[group + 1]))]

    def malformed(self, source: str) -> Iterator[Drop]:
        """The elements that belong to no group, as they stand in the file but in one line."""
        for element in self._read(0, int(self._starts[0])):
            text = " ".join(element[:200].decode(errors="replace").split())
            yield Drop("annotation malformed", source, f"no object with the keys it needs: {text}")

    def _read(self, first: int, end: int) -> Iterator[bytes]:
        for row in range(first, end):
            yield os.pread(self._file, int(self._lengths[row]), int(self._offsets[row]))


class _Scanner:
    """A cursor over one file: a window of text, its offset in the file, and the current position in the window."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.decode = json.JSONDecoder().raw_decode
        self.text, self.base, self.at = "", 0, 0

    def elements(self, name: str | None, missing_ok: bool = False) -> Iterator[tuple[Any, int, int]]:
        """(value, byte offset, byte length) of the elements of the array ``name``."""
        try:
            self.file = open(self.path, "rb")  # noqa: SIM115 (closed by the with below)
        except FileNotFoundError:
            raise ConversionError(f"{self.path}: no such file") from None
        with self.file:
            if self.file.read(3) != b"\xef\xbb\xbf":  # byte order mark
                self.file.seek(0)
            self.base = self.file.tell()
            opening = self.peek()
            if name is None:
                if opening != "[":
                    self.fail("expected a JSON array ('[')")
                yield from self.array()
                return
            if opening != "{":
                self.fail(f"expected a JSON object with an array {name!r}")
            present = yield from self.members(name)
            if not present and not missing_ok:
                lines = self.text[self.at + 1 :].lstrip(_BLANK).startswith("{")
                what = "it looks like JSON lines, one object is expected" if lines else "is it the right file?"
                raise ConversionError(f"{self.path}: has no array {name!r}; {what}")

    def members(self, name: str | None) -> Generator[tuple[Any, int, int], None, bool]:
        self.at += 1
        while True:
            if self.peek() == "}":
                return False
            key, _, _ = self.value()
            if self.peek() != ":":
                self.fail("expected ':'")
            self.at += 1
            opening = self.peek()
            if key == name:
                if opening == "n" and self.value()[0] is None:
                    return True  # null: there are none
                if opening != "[":
                    self.fail(f"{name!r} is not an array")
                yield from self.array()
                return True
            if opening == "[":
                for _ in self.array():
                    pass
            else:
                self.value()
            self.separator("}")

    def array(self) -> Iterator[tuple[Any, int, int]]:
        self.at += 1
        while self.peek() != "]":
            yield self.value()
            self.separator("]")
        self.at += 1

    def separator(self, closing: str) -> None:
        char = self.peek()
        if char == ",":
            self.at += 1
        elif char != closing:
            self.fail(f"expected ',' or {closing!r}")

    def peek(self) -> str:
        """The next character that is not blank; the position moves to it."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in _BLANK:
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                self.fail("the file ends early")

    def value(self) -> tuple[Any, int, int]:
        """(value, byte offset, byte length) of the value at the position; the position moves behind it."""
        self.peek()
        while True:
            problem = "the file ends early"
            try:
                value, end = self.decode(self.text, self.at)
                # A number may go on in the next window, so a value ends only where something follows it.
                if end < len(self.text):
                    break
            except RecursionError:
                self.fail("nested too deep")
            except ValueError as error:  # of a number of thousands of digits, too
                problem = getattr(error, "msg", str(error))
            if len(self.text) - self.at > _LARGEST or not self.more():
                self.fail(problem, incomplete=True)
        start, self.at = self.at, end
        raw = self.text[start:end]
        if not raw.isascii():
            try:
                value = json.loads(raw.encode("latin-1"))
            except UnicodeDecodeError as error:
                self.fail(f"{NOT_UTF8} ({error.reason})")
            except (ValueError, RecursionError) as error:
                self.fail(str(error))
        return value, self.base + start, end - start

    def more(self) -> bool:
        data = self.file.read(max(_CHUNK, len(self.text) - self.at))
        self.base += self.at
        self.text = self.text[self.at :] + data.decode("latin-1")
        self.at = 0
        return bool(data)

    def fail(self, message: str, incomplete: bool = False) -> None:
        hint = f"; {_INCOMPLETE}" if incomplete or message == "the file ends early" else ""
        raise ConversionError(f"{self.path}: broken JSON at byte {self.base + self.at:,}: {message}{hint}")
