"""Images looked up by the names that annotation files have for them, in folders as they really are.

Labelling tools write names of another machine (back-slashes, absolute paths, `/data/local-files/?d=...`), without
extension, in another case, percent-encoded, or in another Unicode form than the disk. So folders are listed once, and
a name finds the one file whose path ends as it does; what fits several files is found by none.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

from fiber.data.convert.items import RawImage

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".avif", ".heic")


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
        self._by_stem: dict[str, list[tuple[tuple[str, ...], str]]] | None = None

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
        listed = self._listing().get(stem_of(parts[-1]), [])
        for files in ([file for file in listed if file[0][-1] == parts[-1]], listed):
            ends = [(_common(parts, inner), path) for inner, path in files]
            longest = max((length for length, _ in ends), default=0)
            best = [path for length, path in ends if length == longest]
            if len(best) == 1 and (unique or longest >= min(2, len(parts))):
                return best[0]
        return None

    def _listing(self) -> dict[str, list[tuple[tuple[str, ...], str]]]:
        if self._by_stem is None:
            self._by_stem = {}
            seen: set[str] = set()
            for root in self.roots:
                for folder, _, files in os.walk(root):
                    for file in sorted(files):
                        path = os.path.join(folder, file)
                        if os.path.splitext(file)[1].lower() in (*EXTENSIONS, "") and path not in seen:
                            seen.add(path)
                            parts = plain(os.path.relpath(path, root))
                            if parts:
                                self._by_stem.setdefault(stem_of(parts[-1]), []).append((parts, path))
        return self._by_stem


def _common(wanted: Sequence[str], found: Sequence[str]) -> int:
    """How many parts from the end are equal, extensions of the last left aside."""
    count = 1
    for a, b in zip(reversed(wanted[:-1]), reversed(found[:-1]), strict=False):
        if a != b:
            break
        count += 1
    return count
