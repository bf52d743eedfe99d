"""Whether a source is still what a set was made of: a digest of the files that its items are read from.

Of annotations, lists, labels and tars it has name, size and time of change; of images their names alone. It does not
depend on an order, so folders of millions of files are neither sorted nor kept in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from fiber.data.convert.image_folder import is_image
from fiber.data.convert.items import RawDataset

_TEXT_FOLDERS = ("texts", "text", "captions", "caption", "txt")  # where fiber.data.convert.pairs looks beside images


def source_digest(source: RawDataset, out: Path) -> str | None:
    """Of `source.reads`, which is used up, and of the classes; None where the reader does not say what it reads.

    out: what lies in this folder is no part of the source.
    """
    total, count = 0, 0
    for path in source.reads:
        for entry in _entries(os.path.abspath(path), os.path.realpath(out)):
            total += int.from_bytes(hashlib.blake2b(os.fsencode(entry), digest_size=16).digest(), "big")
            count += 1
    if not count:
        return None
    classes = hashlib.blake2b(json.dumps(source.categories).encode(), digest_size=16).digest()
    whole = (total + int.from_bytes(classes, "big")) % (1 << 128)
    return f"{count} files {whole:032x}"


def _entries(path: str, out: str) -> Iterator[str]:
    """A line for a file, or for each image and text below a folder."""
    if not os.path.isdir(path):
        name = os.path.join(os.path.basename(os.path.dirname(path)), os.path.basename(path))
        yield name if is_image(path) else _stamped(name, path)
        return
    before, inner, after = f"{path}{os.sep}".rpartition(f"{os.sep}images{os.sep}")
    beside = [os.path.join(before, name, after) for name in _TEXT_FOLDERS if inner]
    for folder in (path, *filter(os.path.isdir, beside)):
        yield from _below(folder, out)


def _below(top: str, out: str) -> Iterator[str]:
    waiting, seen = [top], set[tuple[int, int]]()
    while waiting:
        folder = waiting.pop()
        facts = os.stat(folder)
        if (facts.st_dev, facts.st_ino) in seen or os.path.realpath(folder) == out:
            continue
        seen.add((facts.st_dev, facts.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append(entry.path)
                elif is_image(entry.name):
                    yield os.path.relpath(entry.path, top)
                elif entry.name.lower().endswith(".txt"):
                    yield _stamped(os.path.relpath(entry.path, top), entry.path)


def _stamped(name: str, path: str) -> str:
    try:
        facts = os.stat(path)
    except OSError:
        return f"{name} is not there"
    return f"{name} {facts.st_size} {facts.st_mtime_ns}"
