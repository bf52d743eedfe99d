"""Which split a file or a folder belongs to, by its name, and lists of files that do not fill the memory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev", "minival"),
          "test": ("test", "testing")}  # fmt: skip
_WORDS = {word: split for split, words in NAMES.items() for word in words}


def split_of(*names: str) -> str | None:
    """The split that the first of the names with such a word in it has: "instances_train2017.json" is train."""
    for name in names:
        found = [_WORDS[word] for word in re.split("[^a-z]+", name.lower()) if word in _WORDS]
        if found:
            return found[0]
    return None


def files(folder: str | Path, wanted: Callable[[str], bool]) -> Iterator[str]:
    """Paths below a folder whose name is wanted, in a fixed order. The names of one folder are in memory at a time,
    as plain texts; hidden folders and files are passed over."""
    names, inner = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                inner.append(entry.name)
            elif wanted(entry.name):
                names.append(entry.name)
    names.sort()
    for name in names:
        yield os.path.join(folder, name)
    del names
    for name in sorted(inner):
        yield from files(os.path.join(folder, name), wanted)


def folders_of(root: Path) -> dict[str, list[Path]]:
    """split -> the folders in `root` and in `root/images` that are called like it."""
    found: dict[str, list[Path]] = {}
    for place in (root, root / "images", root / "JPEGImages"):
        for folder in sorted(place.iterdir()) if place.is_dir() else ():
            if folder.is_dir() and (split := split_of(folder.name)):
                found.setdefault(split, []).append(folder)
    return found
