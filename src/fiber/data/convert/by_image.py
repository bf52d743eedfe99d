"""The rows of a text file by image, wherever they lie in it.

So the file is read twice: first for whose row each is and where it lies (a hash of the image's name, offset, length),
then in the order in which images come first, each row again at its place, which keeps 28 bytes per row. Where rows of
an image lie together, as in most files, the second reading goes from front to back. Of names 32 bytes each are kept.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np

from fiber.data.convert.file_names import FileNames, marks
from fiber.data.convert.image_folder import hashed
from fiber.data.convert.items import Drop
from fiber.data.convert.pair_images import is_base64, is_url
from fiber.data.convert.pair_rows import Row, RowFile


class ByImage:
    """The rows of a file by image: iterating gives (name, texts, offset, length), images in the order in which they
    come first, offset and length those of the first row; Drops for rows that cannot be used. len() counts images.
    names: what the names of all of them tell together."""

    def __init__(self, rows: RowFile) -> None:
        self.rows = rows
        self._scattered: tuple[np.ndarray, np.ndarray, array, array] | None = None  # order, first row, offset, length
        hashes, names, offsets, lengths = array("Q"), array("Q"), array("q"), array("i")
        runs, last = 0, None
        for number, (row, offset, length) in enumerate(rows.places()):
            own = _owner(row, number)
            if own != last and not isinstance(row, Drop) and _is_path(row[0]):
                names.extend(marks(row[0]))
            runs, last = runs + (own != last), own
            hashes.append(own)
            offsets.append(offset)
            lengths.append(length)
        every = np.frombuffer(hashes, np.uint64) if len(hashes) else np.zeros(0, np.uint64)
        self._images = len(np.unique(every))
        found = (np.frombuffer(names, np.uint64) if names else np.zeros(0, np.uint64)).reshape(-1, 4)
        once = np.unique(found[:, 3], return_index=True)[1] if runs > self._images else slice(None)
        self.names = FileNames.of_marks(found[once])
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
            elif (name := _plain(row[0])) in waiting:  # two names of one hash stay apart
                waiting[name][1].extend(row[1])
            else:
                waiting[name] = (row[0], row[1], offset, length)
        yield from waiting.values()


def _owner(row: Row | Drop, number: int) -> int:
    """Equal for rows of one image; a row without a name, or with the image itself, belongs to no other."""
    return hashed(f"\n{number}" if isinstance(row, Drop) or is_base64(row[0]) else _plain(row[0]))


def _plain(name: str) -> str:
    """One spelling of a path: `images\\1.jpg`, `./images/1.jpg` and `images/1.jpg` are one image."""
    if not _is_path(name):
        return name
    return "/".join(part for part in name.strip().replace("\\", "/").split("/") if part not in ("", "."))


def _is_path(name: str) -> bool:
    return not (is_url(name) or is_base64(name))


def _by_first(owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) uint64 -> (the order of rows by the first row of their owner, and that first row), both int64 (N,)."""
    by_owner = np.argsort(owners, kind="stable")  # rows of an owner in the order of the file
    starts = np.flatnonzero(np.concatenate([[True], np.diff(owners[by_owner]) != 0]))
    first = np.empty(len(owners), np.int64)
    first[by_owner] = np.repeat(by_owner[starts], np.diff(starts, append=len(owners)))
    return np.argsort(first, kind="stable"), first
