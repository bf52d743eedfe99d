"""Predictions streamed to disk: one JSON-lines file a rank, merged into one sorted file.

Nothing is gathered over the network and nothing but one chunk is ever held in memory, so an evaluation
costs the same memory for a hundred images and a hundred thousand, and its result cannot depend on how
many ranks took part: the merged file is sorted by a key that is unique, whoever wrote the row.

Two jobs may write into one folder at once, as a training that evaluates and `fiber eval` of the same run: what is on
its way carries the name of its job, and only whole files replace each other.

Rows are plain JSON objects in the format the benchmark's server takes where there is one
(`{"question_id", "answer"}`, `{"image_id", "caption"}`, COCO detection results).
"""

import contextlib
import functools
import glob
import heapq
import json
import os
import secrets
import tempfile
import time
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

from fiber import distributed
from fiber.errors import ShardError

Row = dict[str, Any]

STALE_S = 86_400  # after which rows that nobody has merged are those of a job that was killed


class PredictionWriter:
    """Writes this rank's rows to `FOLDER/NAME.RANK-of-WORLD.JOB.jsonl`. Every rank must make one.

    A context manager. The file carries its final name only once the block ended without an exception, so that
    `merge_predictions` never takes the rows of a rank that died half way.
    """

    def __init__(self, folder: str | Path, name: str, rank: int = 0, world: int = 1) -> None:
        self.path = rank_file(folder, name, rank, world)
        self._partial = self.path.with_suffix(".part")
        self._siblings = f"{glob.escape(name)}.*-of-*"

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)  # rows of an earlier evaluation of this job
        for old in self.path.parent.glob(self._siblings):
            with contextlib.suppress(FileNotFoundError):  # another rank has removed it
                if time.time() - old.stat().st_mtime > STALE_S:
                    old.unlink()
        self._file = self._partial.open("w", encoding="utf-8")
        return self

    def add(self, row: Row) -> None:
        """Append one row. ValueError if it holds a NaN or an infinity, TypeError if it is not plain JSON."""
        try:
            line = json.dumps(row, ensure_ascii=False, allow_nan=False)
        except (ValueError, TypeError) as error:
            raise type(error)(f"cannot write prediction {_short(row)}: {error}") from None
        self._file.write(line + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._partial, self.path)


@functools.cache
def job() -> str:
    """A name that the ranks of this job share and no other job has. Collective at its first call."""
    return distributed.broadcast_object(secrets.token_hex(4))


def rank_file(folder: str | Path, name: str, rank: int, world: int) -> Path:
    """Where rank `rank` of `world` of this job writes. ValueError unless `name` is that of a file in the folder: sets
    of strangers are called anything."""
    if name in ("", "..") or set(name) & set("/\\\0"):
        raise ValueError(f"{name!r} names no file of {folder}")
    return Path(folder) / f"{name}.{rank:05d}-of-{world:05d}.{job()}.jsonl"


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """A file of its own that replaces `path` once the block ended without an exception."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


ONE_KIND = "some ids of the set are texts and some numbers: write all in one way"
REMEDY = "the set holds an image or an annotation twice: leave one out and make its shards again"


class RepeatedError(ValueError):
    """What there may be once, twice. `number`: of what came twice, where it has one."""

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


def merge_predictions(
    folder: str | Path,
    name: str,
    world: int,
    key: Sequence[str],
    chunk_bytes: int = 64 << 20,
    shards: str | Path | None = None,
) -> Path:
    """Merge the files of all ranks into `FOLDER/NAME.jsonl`, sorted by the fields `key`, and remove them.

    Called by one rank, after all have closed their writers. External merge sort: at most about `chunk_bytes` of
    rows are in memory. Raises FileNotFoundError naming the ranks whose file is missing, ValueError naming the
    key that occurs twice or the row that lacks a field of the key. Where `shards`, the folder of the set, is given,
    a key that occurs twice, or ids of two kinds, are a fault of the set: ShardError naming it.
    """
    parts = [rank_file(folder, name, rank, world) for rank in range(world)]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        raise FileNotFoundError(
            f"predictions of {len(missing)} of {world} ranks are missing in {folder}: {', '.join(missing[:4])}; "
            "the evaluation did not finish there, run it again"
        )
    target = Path(folder) / f"{name}.jsonl"
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        contextlib.ExitStack() as stack,
        _replacing(target) as out,
    ):
        try:
            runs = [
                stack.enter_context(run.open(encoding="utf-8"))
                for run in _sorted_runs(parts, key, chunk_bytes, Path(scratch))
            ]
            _write_unique(heapq.merge(*(_keyed_lines(run, key) for run in runs)), key, name, out)
        except RepeatedError as error:
            raise error if shards is None else ShardError(f"{shards}: {error}; {REMEDY}") from None
        except TypeError as error:
            what = f"predictions {name!r} cannot be sorted by {list(key)}: {error}"
            raise ValueError(what) if shards is None else ShardError(f"{shards}: {what}; {ONE_KIND}") from None
    for part in parts:  # every row once on disk
        part.unlink()
    return target


def read_predictions(path: str | Path) -> Iterator[Row]:
    """The rows of a JSON-lines file, one at a time."""
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from None


def write_results(path: str | Path, rows: Iterable[Row]) -> Path:
    """Write `rows` as the one JSON list that evaluation servers take, row by row, and only whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as file:
        file.write("[")
        for count, row in enumerate(rows):
            file.write((",\n" if count else "\n") + json.dumps(row, ensure_ascii=False, allow_nan=False))
        file.write("\n]\n")
    return path


def by_key(rows: Iterable[Mapping[str, Any]], key: str, value: str) -> dict[Hashable, Any]:
    """`{row[key]: row[value]}`; ValueError names the row that lacks a field or the key that comes twice."""
    found: dict[Hashable, Any] = {}
    for row in rows:
        if key not in row or value not in row:
            raise ValueError(f"prediction {_short(row)} must have {key!r} and {value!r}")
        if row[key] in found:
            raise ValueError(f"two predictions for {key} {row[key]!r}")
        found[row[key]] = row[value]
    return found


def check_complete(predicted: Mapping | Collection, wanted: Mapping | Collection, what: str) -> None:
    """ValueError unless both hold exactly the same keys; a score over a part of a set is not that set's score."""
    missing = [key for key in wanted if key not in predicted]
    unknown = [key for key in predicted if key not in wanted]
    if missing or unknown:
        fault = f"no prediction for {len(missing)} of {len(wanted)}" if missing else f"{len(unknown)} unknown"
        raise ValueError(f"{what}: {fault}, e.g. {(missing or unknown)[0]!r}")
    if not wanted:
        raise ValueError(f"{what}: nothing to score")


def _keyed_lines(lines: Iterable[str], key: Sequence[str]) -> Iterator[tuple[tuple, str]]:
    for line in lines:
        row = json.loads(line)
        try:
            yield tuple(row[field] for field in key), line
        except KeyError as error:
            raise ValueError(f"prediction {_short(row)} has no field {error}, which is part of its key") from None


def _sorted_runs(parts: Sequence[Path], key: Sequence[str], chunk_bytes: int, scratch: Path) -> Iterator[Path]:
    """Sort chunk after chunk of the parts into files of their own; yields the paths."""
    chunk: list[tuple[tuple, str]] = []
    held = count = 0

    def flush() -> Path:
        chunk.sort(key=lambda item: item[0])
        run = scratch / f"run{count}.jsonl"
        run.write_text("".join(line for _, line in chunk), encoding="utf-8")
        return run

    for part in parts:
        with part.open(encoding="utf-8") as file:
            for item in _keyed_lines(file, key):
                chunk.append(item)
                held += len(item[1])
                if held >= chunk_bytes:
                    yield flush()
                    chunk, held, count = [], 0, count + 1
    if chunk:
        yield flush()


def _write_unique(items: Iterable[tuple[tuple, str]], key: Sequence[str], name: str, out: TextIO) -> None:
    previous: tuple | None = None
    for item_key, line in items:
        if item_key == previous:
            fields = ", ".join(f"{field}={value!r}" for field, value in zip(key, item_key, strict=True))
            raise RepeatedError(f"predictions {name!r}: two rows with {fields}")
        out.write(line)
        previous = item_key


def _short(row: object, limit: int = 160) -> str:
    text = repr(row)
    return text if len(text) <= limit else text[:limit] + "..."
