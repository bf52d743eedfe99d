"""Whether a source is still what a set was made of: a digest of the files that its items are read from.

Of annotations, lists, labels and tars it has name, size and time of change; of images their names alone. It does not
depend on an order, so nothing is kept of a file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator

from fiber.data.convert.image_folder import is_image
from fiber.data.convert.items import RawDataset
from fiber.data.convert.splits import TEXT_FOLDERS, files


def source_digest(source: RawDataset) -> str | None:
    """Of `source.reads`, which is used up, and of the classes; None where the reader does not say what it reads."""
    total, count = 0, 0
    for path in source.reads:
        for entry in _entries(os.path.abspath(path)):
            total += int.from_bytes(hashlib.blake2b(os.fsencode(entry), digest_size=16).digest(), "big")
            count += 1
    if not count:
        return None
    classes = hashlib.blake2b(json.dumps(source.categories).encode(), digest_size=16).digest()
    whole = (total + int.from_bytes(classes, "big")) % (1 << 128)
    return f"{count} files {whole:032x}"


def _entries(path: str) -> Iterator[str]:
    """A line for a file, or for each image and text below a folder."""
    if not os.path.isdir(path):
        yield _entry(os.path.join(os.path.basename(os.path.dirname(path)), os.path.basename(path)), path)
        return
    before, inner, after = f"{path}{os.sep}".rpartition(f"{os.sep}images{os.sep}")
    beside = [os.path.join(before, name, after) for name in TEXT_FOLDERS if inner]
    for folder in (path, *filter(os.path.isdir, beside)):
        for file in files(folder, _is_read):
            yield _entry(os.path.relpath(file, folder), file)


def _is_read(name: str) -> bool:
    return is_image(name) or name.lower().endswith(".txt")


def _entry(name: str, path: str) -> str:
    return name if is_image(path) else _stamped(name, path)


def _stamped(name: str, path: str) -> str:
    try:
        facts = os.stat(path)
    except OSError:
        return f"{name} is not there"
    return f"{name} {facts.st_size} {facts.st_mtime_ns}"
