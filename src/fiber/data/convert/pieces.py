"""Pieces of a conversion: one shard each, made by any number of processes with the same bytes."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fiber.countdown import Countdown
from fiber.data.convert.items import ConversionError, Drop, Made, RawItem, UnusableItem
from fiber.data.convert.packing import Packing, pack
from fiber.data.convert.verdict import Contents
from fiber.data.convert.writer import ShardWriter
from fiber.data.records import RecordError

PARTIAL = ".partial"
LEAK = "in an evaluation set"
_SAME_BYTES = 3  # an image seen this often in one shard of web images is a host's "not available"


@dataclass
class Piece:
    """What a worker needs besides the items; made once, sent to every worker."""

    out: Path
    name: str
    packing: Packing
    categories: set[int] | None
    leaks: dict[str, str]
    drop_leaks: bool
    placeholders: bool
    length: int = 0


def make_key(number: int, image_id: str) -> str:
    """A sample's key: unique by its number in the conversion, readable by its image id, without dots."""
    return f"{number:08d}-{re.sub('[^A-Za-z0-9_-]', '_', image_id)[:60]}"


def make_item(
    item: RawItem | Made, key: str, packing: Packing, categories: set[int] | None
) -> tuple[Any, list[Drop]]:
    """The sample of an item, None where it cannot be used, and what was left out or changed."""
    if isinstance(item, Made):
        return replace(item.make(), key=key), []
    return pack(item, key, packing, categories)


def cut(items: Iterator[Any], length: int) -> Iterator[tuple[int, list[Any]]]:
    """Numbered pieces of `length` items, the last one shorter."""
    for number in itertools.count():
        piece = list(itertools.islice(items, length))
        if not piece:
            return
        yield number, piece


def run_pieces(
    pieces: Iterator[tuple[int, list[Any]]], piece: Piece, partial: Path, total: int | None, workers: int
) -> list[Path]:
    """Makes every piece that is not there yet; the folders of all pieces in order."""
    folders: list[Path] = []
    shown = Countdown(f"converting {piece.name}", total, leave=True)

    def missing() -> Iterator[tuple[int, list[Any]]]:
        for number, items in pieces:
            folders.append(partial / f"{number:06d}")
            if folders[-1].exists():
                shown.skip(len(items))
            else:
                yield number, items

    with closing(shown):
        if workers == 1:
            _start_worker(piece, None)
            for number, items in missing():
                shown.add(_make_piece(number, items))
            return folders
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, _start_worker, (piece, os.getpid()))
        waiting: deque = deque()
        try:
            for number, items in missing():
                waiting.append(pool.submit(_make_piece, number, items))
                if len(waiting) > 2 * workers:
                    shown.add(waiting.popleft().result())
            while waiting:
                shown.add(waiting.popleft().result())
        except BrokenProcessPool:
            raise ConversionError(
                "a worker process died (out of memory?); run the same command again to go on, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return folders


_piece: Piece  # set once in each worker


def _start_worker(piece: Piece, parent: int | None) -> None:
    global _piece
    _piece = piece
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """A killed parent cannot tell its workers; they notice and go, so that nothing keeps writing behind a rerun."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _make_piece(number: int, items: list[RawItem | Made | Drop]) -> int:
    """Writes one piece aside and renames it into place. Returns its number of items."""
    piece = _piece
    final = piece.out / PARTIAL / f"{number:06d}"
    aside = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    unavailable = _repeated(items) if piece.placeholders else set()
    drops: list[Drop] = []
    contents = Contents()
    # One tar per piece: the length was chosen for that, so neither limit of the writer may cut it.
    with ShardWriter(aside, piece.name, max_samples=len(items) + 1, max_bytes=1 << 62) as writer:
        for offset, item in enumerate(items):
            if isinstance(item, Drop):
                drops.append(item)
                continue
            image_id = item.image_id
            if (evaluation := piece.leaks.get(image_id)) is not None:
                drops.append(Drop(LEAK, image_id, evaluation, kept=not piece.drop_leaks))
                if piece.drop_leaks:
                    continue
            if offset in unavailable:
                drops.append(Drop("placeholder image", image_id, f"the same bytes {_SAME_BYTES} times or more"))
                continue
            sample, dropped = make_item(item, make_key(number * piece.length + offset, image_id), piece.packing,
                                    piece.categories)  # fmt: skip
            drops += dropped
            if sample is None:
                continue
            try:
                writer.add(sample)
                contents.add(sample.record)
            except RecordError as error:
                drops.append(Drop(error.reason, image_id, str(error)))
    report = {
        "items": len(items),
        "drops": [list(vars(drop).values()) for drop in drops],
        "counts": contents.counts,
        "per_class": contents.per_class,
    }
    write_json(aside / "drops.json", report)
    if final.exists():  # an earlier worker whose parent was killed finished it after all: same bytes
        shutil.rmtree(aside)
    else:
        os.replace(aside, final)
    return len(items)


def _repeated(items: list[RawItem | Made | Drop]) -> set[int]:
    """Places of the items whose image has the same bytes as several others'."""
    places: dict[bytes, list[int]] = {}
    for offset, item in enumerate(items):
        if isinstance(item, RawItem):
            try:
                digest = hashlib.blake2b(item.images[0].read(), digest_size=16).digest()
            except UnusableItem:
                continue
            places.setdefault(digest, []).append(offset)
    return {offset for same in places.values() if len(same) >= _SAME_BYTES for offset in same}


def write_json(path: Path, value: Any) -> None:
    """Written aside and renamed, so that it is whole or absent."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    # Half of a surrogate pair, which JSON may hold and UTF-8 may not, becomes its escape.
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    aside.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(aside, path)
