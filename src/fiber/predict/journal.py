"""What a long run over images has done so far: a file beside its result that a kill at any moment leaves of use.

The first line says what was asked, every further one holds one whole batch. A line that is cut short, and all behind
it, does not count. So a rerun takes up the batches as they would have come, and ends with the same result.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiber.countdown import Countdown
from fiber.predict.sources import ImageError, ImageFile, Prepared
from fiber.predict.stream import in_groups

SYNC_S = 5.0  # seconds between two calls of fsync: what a failing machine may cost


@dataclass(frozen=True)
class Entry:
    """One image of a batch: its relative name and `ImageFile.stamp`, and what was found (`row`), or why it could not
    be read (`fault`)."""

    name: str
    stamp: Sequence[int]
    row: Any = None
    fault: str | None = None

    @property
    def key(self) -> int:
        """Stands for name and stamp in a set of many."""
        return key_of(self.name, self.stamp)


def key_of(name: str, stamp: Sequence[int]) -> int:
    """`Entry.key` of an image."""
    return hash((name, *stamp))


class Journal:
    """The journal of the result `out`, opened to go on. `done` holds the keys of the images that it has.

    asked: what was asked of which model, plain JSON. `usable`: of how many rows the caller has its own part of, see
    `keep`. Raises ValueError where the file is the journal of something else, or another process writes it.
    """

    def __init__(self, out: Path, asked: dict[str, Any], usable: int | None = None) -> None:
        self.file = out.with_name(out.name + ".journal")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.done: set[int] = set()
        self.rows = 0
        self._stream = open(self.file, "a+b")  # noqa: SIM115 (until `close`)
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._stream.close()
            raise ValueError(f"{out}: another process is writing it ({self.file})") from None
        self._resume(json.loads(json.dumps(asked)), usable)
        self._synced = time.monotonic()

    def _resume(self, asked: dict[str, Any], usable: int | None) -> None:
        self._stream.seek(0)
        head = self._stream.readline()
        if not head.endswith(b"\n"):  # new, or killed at once
            self._stream.truncate(0)
            self._stream.write(json.dumps({"asked": asked}).encode() + b"\n")
            self._stream.flush()
            return
        try:
            before = json.loads(head)["asked"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.file} is no journal: delete it, or give --out another name") from None
        if before != asked:
            keys = sorted(key for key in before.keys() | asked.keys() if before.get(key) != asked.get(key))
            what = "other " + ", ".join(keys)
            raise ValueError(f"{self.file} was begun with {what}: delete it to start again, or name another --out")
        whole = self._stream.tell()
        for line in self._stream:
            entries = _entries(line)
            rows = sum(entry.fault is None for entry in entries or ())
            if entries is None or (usable is not None and self.rows + rows > usable):
                break
            self.done.update(entry.key for entry in entries)
            self.rows += rows
            whole += len(line)
        self._stream.truncate(whole)

    def append(self, entries: Sequence[Entry]) -> None:
        """Add one batch. Raises OSError, of a full disk, say."""
        line = json.dumps([vars(entry) for entry in entries], separators=(",", ":"))
        self._stream.write(line.encode() + b"\n")
        self._stream.flush()
        self.rows += sum(entry.fault is None for entry in entries)
        if time.monotonic() - self._synced > SYNC_S:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()

    def __iter__(self) -> Iterator[Entry]:
        """Every entry, in the order in which they came."""
        with self.file.open("rb") as lines:
            next(lines)
            for line in lines:
                yield from _entries(line) or ()

    def close(self) -> None:
        """Close it; it stays, for a rerun."""
        self._stream.close()

    def remove(self) -> None:
        """Close and delete it: the result is there."""
        self.file.unlink(missing_ok=True)
        self.close()


def _entries(line: bytes) -> list[Entry] | None:
    """The batch of a line; None for a line that is not whole."""
    try:
        return [Entry(**entry) for entry in json.loads(line)] if line.endswith(b"\n") else None
    except (ValueError, TypeError):
        return None


def each_batch(
    predictor: Any, files: Iterable[ImageFile], done: AbstractSet[int], shown: Countdown
) -> Iterator[list[tuple[ImageFile, Prepared | ImageError]]]:
    """The files whose keys are not `done`, prepared, a batch of the predictor at a time."""

    def todo() -> Iterator[ImageFile]:
        for file in files:
            if done and key_of(file.relative, stamp_of(file)) in done:
                shown.skip()
            else:
                yield file

    for group in in_groups(predictor.stream(todo()), predictor.batch):
        yield group
        shown.add(len(group))


def entry_of(file: ImageFile, image: Prepared | ImageError, row: Any = None) -> Entry:
    """The journal's entry of an image."""
    fault = str(image) if isinstance(image, ImageError) else None
    return Entry(file.relative, stamp_of(file), row, fault)


def stamp_of(file: ImageFile) -> tuple[int, int, int]:
    """The stamp of a file, -1 of one that has gone: reading it will say so."""
    try:
        return file.stamp()
    except ImageError:
        return (-1, -1, -1)
