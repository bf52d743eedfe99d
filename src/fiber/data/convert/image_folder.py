"""Images looked up by the names that annotation files have for them, in folders as they really are.

Labelling tools write names of another machine (back-slashes, absolute paths, `/data/local-files/?d=...`), without
extension, in another case, percent-encoded, or in another Unicode form than the disk. So folders are listed once, and
a name finds the one file whose path ends as it does; what fits several files is found by none.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from fiber.data.convert.items import RawImage

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".avif", ".heic")


def is_image(name: str) -> bool:
    """Whether a file is called like an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def plain(name: str) -> tuple[str, ...]:
    """The parts of a file name in one form: `/` between them, no `.`, `..`, drive or query, no case, one Unicode
    form."""
    if "?d=" in name:  # Label Studio's local files
        name = name.rpartition("?d=")[2]
    text = unicodedata.normalize("NFC", unquote(name.partition("?")[0])).casefold().replace("\\", "/")
    return tuple(part for part in text.split("/") if part not in ("", ".", "..") and not part.endswith(":"))


def stem_of(part: str) -> str:
    """A last part without an image's extension."""
    stem, extension = os.path.splitext(part)
    return stem if extension in EXTENSIONS else part


class ImageFolder:
    """Finds images under ``roots``. They are listed when the first name is not there as written."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self.roots = list(dict.fromkeys(roots))
        self._listed: _Listing | None = None

    def find(self, name: str, unique: bool = True) -> RawImage:
        """Where the file called ``name`` lies: as written below a root, else the one file that ends like it; if there
        is none, a RawImage that names the first place looked at. unique: no other image has this base name, so a
        file of that name in another folder is this one.
        """
        written = [os.path.join(root, name) for root in self.roots if "\0" not in name]
        if (there := next((path for path in written if os.path.isfile(path)), None)) is not None:
            return RawImage((there,))
        found = self._match(plain(name), unique)
        return RawImage((found,) if found is not None else tuple(written))

    def _match(self, parts: Sequence[str], unique: bool) -> str | None:
        """The one listed file with the longest common end; with the same extension before any other."""
        if not parts:
            return None
        if self._listed is None:
            self._listed = _Listing(self.roots)
        listed = [file for file in self._listed.of(stem_of(parts[-1])) if stem_of(file[0][-1]) == stem_of(parts[-1])]
        for files in ([file for file in listed if file[0][-1] == parts[-1]], listed):
            ends = [(_common(parts, inner), path) for inner, path in files]
            longest = max((length for length, _ in ends), default=0)
            best = [path for length, path in ends if length == longest]
            if len(best) == 1 and (unique or longest >= min(2, len(parts))):
                return best[0]
        return None


class FileNames:
    """What the names of all images of a set tell together: which repeat. 8 bytes per name."""

    def __init__(self, names: Iterable[str]) -> None:
        stems, bases = array("Q"), array("Q")
        for name in names:
            base = _base(name)
            bases.append(_hash(base))
            stems.append(_hash(_bare(base)))
        self._stems, self._bases = _repeated(stems), _repeated(bases)

    def image_id(self, set_name: str, name: str) -> str:
        """SET_STEM; where several images have that stem, SET_ and the whole name."""
        stem = _bare(_base(name))
        return f"{set_name}_{name.replace(chr(92), '/') if _hash(stem) in self._stems else stem}"

    def find(self, folder: ImageFolder, name: str) -> RawImage:
        """The image's file."""
        return folder.find(name, _hash(_base(name)) not in self._bases)


class _Listing:
    """The images below some roots, each once, by stem: 17 bytes per file, and its path, whatever their number."""

    def __init__(self, roots: list[Path]) -> None:
        stems, self._roots, self._ends = array("Q"), array("B"), array("q")
        paths = bytearray()
        self._names = [os.fspath(root) for root in roots[:256]]
        for number, root in enumerate(self._names):
            inside = [other for other in self._names[:number] if (root + os.sep).startswith(other + os.sep)]
            around = [other + os.sep for other in self._names[:number]]
            for path in () if inside else _images_below(root):
                if any(path.startswith(other) for other in around):
                    continue  # listed already, below a root that comes before
                relative = os.path.relpath(path, root)
                stems.append(_hash(stem_of(plain(relative)[-1])) if plain(relative) else 0)
                self._roots.append(number)
                paths += os.fsencode(relative)
                self._ends.append(len(paths))
        self._paths = bytes(paths)
        hashes = np.frombuffer(stems, np.uint64) if len(stems) else np.zeros(0, np.uint64)
        self._order = np.argsort(hashes, kind="stable").astype(np.int32)
        self._stems = hashes[self._order]

    def of(self, stem: str) -> Iterator[tuple[tuple[str, ...], str]]:
        """(parts, path) of the files of this stem, and perhaps of another with the same hash."""
        first, last = (int(np.searchsorted(self._stems, np.uint64(_hash(stem)), side)) for side in ("left", "right"))
        for row in self._order[first:last]:
            relative = os.fsdecode(self._paths[self._ends[row - 1] if row else 0 : self._ends[row]])
            yield plain(relative), os.path.join(self._names[self._roots[row]], relative)


def _images_below(root: str) -> Iterator[str]:
    """In no order, one entry in memory at a time; a folder that cannot be read has none."""
    waiting = [root]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting += [] if entry.is_symlink() else [entry.path]
                elif is_image(entry.name) or not os.path.splitext(entry.name)[1]:
                    yield entry.path


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "big")


def _base(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _bare(base: str) -> str:
    """Without an image's extension."""
    return os.path.splitext(base)[0] if is_image(base) else base


def _repeated(hashes: array) -> frozenset[int]:
    """Those that come more than once."""
    found, counts = np.unique(np.frombuffer(hashes, np.uint64) if len(hashes) else [], return_counts=True)
    return frozenset(map(int, found[counts > 1]))


def _common(wanted: Sequence[str], found: Sequence[str]) -> int:
    """How many parts from the end are equal, extensions of the last left aside."""
    count = 1
    for a, b in zip(reversed(wanted[:-1]), reversed(found[:-1]), strict=False):
        if a != b:
            break
        count += 1
    return count
