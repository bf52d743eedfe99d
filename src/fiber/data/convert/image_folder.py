"""Images looked up by the names that annotation files have for them, in folders as they really are.

Labelling tools write names of another machine (back-slashes, absolute paths, `/data/local-files/?d=...`), without
extension, in another case, percent-encoded, or in another Unicode form than the disk. So folders are listed once, and
a name finds the one file whose path ends as it does; what fits several files is found by none. A missing image stays
missing: no file of another split takes its place, none that another entry names, and none from elsewhere where the
folder in its name is there.
"""

from __future__ import annotations

import os
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from fiber.data.convert.items import RawImage
from fiber.data.convert.splits import IMAGE_ENDINGS, is_folder, split_of


def is_image(name: str) -> bool:
    """Whether a file is called like an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_ENDINGS


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
    return stem if extension in IMAGE_ENDINGS else part


def _nobody(path: str, common: int) -> bool:
    return False


class ImageFolder:
    """Finds images under ``roots``. They are listed when the first name is not there as written.

    split: the split whose images these are, None where the set has but one. A folder below ``base`` that is called
    like another split has none of them, unless a name says so itself.
    """

    def __init__(self, roots: Iterable[Path], base: Path | None = None, split: str | None = None) -> None:
        self.roots = list(dict.fromkeys(roots))
        self._base, self._split = os.path.join(base or "", ""), split
        self._listed: _Listing | None = None
        self._with_images: dict[str, list[str]] = {}

    def find(self, name: str, unique: bool = True, taken: Callable[[str, int], bool] = _nobody) -> RawImage:
        """Where the file called ``name`` lies: as written below a root, else the one file that ends like it; if there
        is none, a RawImage that names the first place looked at. unique: no other image has this base name, so a
        file of that name in another folder is this one. taken(path, common): whether that file, which ends as
        ``name`` does in so many parts, is another image's.
        """
        written = [os.path.join(root, name) for root in self.roots if "\0" not in name]
        if (there := next((path for path in written if os.path.isfile(path)), None)) is not None:
            return RawImage((there,))
        found = self._match(name, unique, taken)
        return RawImage((found,) if found is not None else tuple(written))

    def of_stem(self, stem: str) -> list[str]:
        """The listed files with this path but for the extension, in the order of their names."""
        parts = plain(stem)
        return sorted(path for _, path in self._of(parts[-1]) if bare_parts(path) == parts) if parts else []

    def holds(self, folder: str) -> bool:
        """Whether a folder is one of the roots or lies below one."""
        return any(os.path.join(folder, "").startswith(os.path.join(root, "")) for root in self.roots)

    def _of(self, stem: str) -> list[tuple[tuple[str, ...], str]]:
        if self._listed is None:
            self._listed = _Listing(self.roots)
        return [file for file in self._listed.of(stem) if stem_of(file[0][-1]) == stem]

    def _match(self, name: str, unique: bool, taken: Callable[[str, int], bool]) -> str | None:
        """The one listed file with the longest common end; with the same extension before any other."""
        parts = plain(name)
        if not parts:
            return None
        ends = [(_common(parts, inner), inner, path) for inner, path in self._of(stem_of(parts[-1]))]
        ends = [end for end in ends if not self._of_another_split(end[2], parts[len(parts) - end[0] : -1])]
        for files in ([end for end in ends if end[1][-1] == parts[-1]], ends):
            longest = max((end[0] for end in files), default=0)
            best = [path for length, _, path in files if length == longest]
            if len(best) != 1 or taken(best[0], longest):
                continue
            if longest >= min(2, len(parts)) or (unique and not self._folder_is_there(name, best[0])):
                return best[0]
        return None

    def _of_another_split(self, path: str, said: Sequence[str]) -> bool:
        """Whether a file lies in folders of other splits alone. said: the folders that its name has in common."""
        if self._split is None:
            return False
        inner = path[len(self._base) :] if path.startswith(self._base) else ""
        found = {split for part in inner.split(os.sep)[:-1] if (split := split_of(part))}
        return bool(found) and not found & {self._split, *map(split_of, said)}

    def _folder_is_there(self, name: str, path: str) -> bool:
        """Whether the folder in a name is there and holds images, and a file is not below it."""
        parent = Path(name.replace("\\", "/")).parent.name
        if parent in ("", ".", ".."):
            return False
        if parent not in self._with_images:
            folders = [os.path.join(root, parent, "") for root in self.roots]
            self._with_images[parent] = [folder for folder in folders if _has_images(folder)]
        folders = self._with_images[parent]
        return bool(folders) and not any(path.startswith(folder) for folder in folders)


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
                stems.append(hashed(stem_of(plain(relative)[-1])) if plain(relative) else 0)
                self._roots.append(number)
                paths += os.fsencode(relative)
                self._ends.append(len(paths))
        self._paths = bytes(paths)
        hashes = np.frombuffer(stems, np.uint64) if len(stems) else np.zeros(0, np.uint64)
        self._order = np.argsort(hashes, kind="stable").astype(np.int32)
        self._stems = hashes[self._order]

    def of(self, stem: str) -> Iterator[tuple[tuple[str, ...], str]]:
        """(parts, path) of the files of this stem, and perhaps of another with the same hash."""
        first, last = (int(np.searchsorted(self._stems, np.uint64(hashed(stem)), side)) for side in ("left", "right"))
        for row in self._order[first:last]:
            relative = os.fsdecode(self._paths[self._ends[row - 1] if row else 0 : self._ends[row]])
            yield plain(relative), os.path.join(self._names[self._roots[row]], relative)


def _images_below(root: str) -> Iterator[str]:
    """In no order, one entry in memory at a time; a folder that cannot be read has none."""
    waiting = [root]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if is_folder(entry):
                    waiting.append(entry.path)
                elif is_image(entry.name) or not os.path.splitext(entry.name)[1]:
                    yield entry.path


def _has_images(folder: str) -> bool:
    with suppress(OSError), os.scandir(folder) as entries:
        return any(is_image(entry.name) for entry in entries)
    return False


def bare_parts(path: str) -> tuple[str, ...]:
    """The parts of a path, the last without an image's extension."""
    *inner, last = plain(path)
    return (*inner, stem_of(last))


def hashed(text: str) -> int:
    """64 bits that stand for a text in this process."""
    return hash(text) & 0xFFFF_FFFF_FFFF_FFFF


def _common(wanted: Sequence[str], found: Sequence[str]) -> int:
    """How many parts from the end are equal, extensions of the last left aside."""
    count = 1
    for a, b in zip(reversed(wanted[:-1]), reversed(found[:-1]), strict=False):
        if a != b:
            break
        count += 1
    return count
