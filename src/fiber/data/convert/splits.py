"""Which split a file or a folder belongs to, by its name, and lists of files that do not fill the memory."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev", "minival"),
          "test": ("test", "testing")}  # fmt: skip
TEXT_FOLDERS = ("texts", "text", "captions", "caption", "txt")
"""Beside a folder `images`, those of its texts."""
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jfif", ".avif", ".heic",
                 ".heif")  # fmt: skip
"""How the names of images end, in lower case. Some of them cannot be read, and that is said of each."""
_WORDS = {word: split for split, words in NAMES.items() for word in words}


def split_of(*names: str) -> str | None:
    """The split that the first of the names with such a word in it has: "instances_train2017.json" is train."""
    for name in names:
        found = [_WORDS[word] for word in re.split("[^a-z]+", name.lower()) if word in _WORDS]
        if found:
            return found[0]
    return None


def own_split(path: Path, raw: Path) -> str | None:
    """The split that an annotation file's name says, or that of its folder, which is not the whole set's."""
    return split_of(path.stem) or (split_of(path.parent.name) if path.parent != raw else None)


def own_names(paths: Iterable[Path]) -> dict[Path, str]:
    """What files are called without their ending; those of one name with their folder's before it."""
    paths = list(paths)
    stems = Counter(path.stem for path in paths)
    return {path: path.stem if stems[path.stem] < 2 else f"{path.parent.name}_{path.stem}" for path in paths}


def sorted_names(names: Iterable[str]) -> Iterator[str]:
    """The names in the order of their bytes; all are read at once. Each takes the bytes of the longest, and is no
    Python object: a folder of a million images is a few tens of MB."""
    names = iter(names)
    blocks = []
    while block := list(itertools.islice(names, 4096)):
        blocks.append(np.array([os.fsencode(name) for name in block]))
    if not blocks:
        return iter(())
    whole = np.concatenate(blocks)
    whole.sort()
    return map(os.fsdecode, whole)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself, or to a folder that it lies in, is none."""
    if not entry.is_symlink():
        return entry.is_dir()
    inside = os.path.join(os.path.realpath(os.path.dirname(entry.path)), "")
    return os.path.isdir(entry.path) and not inside.startswith(os.path.join(os.path.realpath(entry.path), ""))


def files(folder: str | Path, wanted: Callable[[str], bool], without: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths below a folder whose name is wanted, in a fixed order. The names of one folder are in memory at a time;
    hidden folders and files are passed over, and the folders `without`."""
    inner: list[str] = []

    def names() -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if is_folder(entry):
                    inner.append(entry.name)
                elif wanted(entry.name):
                    yield entry.name

    for name in sorted_names(names()):
        yield os.path.join(folder, name)
    for name in sorted(inner):
        if (path := os.path.join(folder, name)) not in without:
            yield from files(path, wanted, without)


@dataclass(frozen=True)
class SplitFolder:
    """A folder of a split, less the folders `without` it. left_out: so many files are not taken, but said."""

    path: Path
    without: frozenset[str] = frozenset()
    left_out: int = 0

    def files(self, wanted: Callable[[str], bool]) -> Iterator[str]:
        """As the function of this name."""
        return iter(()) if self.left_out else files(self.path, wanted, self.without)

    def described(self, inner: str = "") -> str:
        """For people."""
        if self.left_out:
            return f"LEFT OUT: {self.left_out:,} in folders of no split (move them into one)"
        name = f"{self.path.name}{inner}"
        return f"{name} but for the other splits" if self.without else name


def parts_of(
    raw: Path, wanted: Callable[[str], bool], ours: Callable[[SplitFolder], bool], rest: Path | None = None
) -> dict[str, list[SplitFolder]]:
    """split -> all its folders with such files; {} where no folder of a split has any.

    What lies in no folder of a split (below `rest`, raw without it) is train where the set has no train or nothing
    but train. Elsewhere it may be a copy of any split, so its number is said and no more.
    """
    named = folders_of(raw)
    found = {
        split: kept
        for split, folders in named.items()
        if (kept := [part for part in map(SplitFolder, folders) if ours(part)])
    }
    others = SplitFolder(rest or raw, frozenset(map(str, itertools.chain.from_iterable(named.values()))))
    if not found or not others.path.is_dir() or not ours(others):
        return found
    if not {"val", "test"} & set(found) or "train" not in found:
        found.setdefault("train", []).append(others)
    else:
        number = sum(1 for _ in others.files(wanted))
        found["train"].append(SplitFolder(others.path, others.without, left_out=number))
    return found


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; none where it is none. Whatever else lies in it is not kept."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if is_folder(entry))


def files_of(folder: Path, pattern: str) -> list[Path]:
    """The files in a folder whose names, in lower case, match a pattern as of glob, sorted; as `subfolders`."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if fnmatchcase(entry.name.lower(), pattern))


def folders_of(root: Path) -> dict[str, list[Path]]:
    """split -> the folders in `root` and in `root/images` that are called like it."""
    found: dict[str, list[Path]] = {}
    for place in (root, root / "images", root / "JPEGImages"):
        for folder in subfolders(place):
            if split := split_of(folder.name):
                found.setdefault(split, []).append(folder)
    return found
