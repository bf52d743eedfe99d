"""What images a user means: files, folders, globs and tars, walked in one order, never held in memory as a whole."""

import glob
import os
import sys
import tarfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from fiber.data.convert.splits import IMAGE_ENDINGS, is_folder, sorted_names
from fiber.data.convert.tar_end import missing_end
from fiber.predict.sources import ImageError, ImageFile

_FOLDER = "\1"  # after the name of a folder while names are sorted: sorts before all that names go on with


class ImageList:
    """The images of files, folders (recursively), globs and tars, sorted within each, each once.

    Walking it again lists again: a folder of a million images costs no more memory than one folder's names.
    `len()` counts by one walk. Raises ImageError for a source that yields nothing.
    """

    def __init__(self, sources: Iterable[str | Path]) -> None:
        self.sources = [str(source) for source in sources]
        self.alone = len(self.sources) == 1 and (os.path.isdir(self.sources[0]) or _is_tar(self.sources[0]))

    @property
    def place(self) -> str:
        """What names this list across runs: the absolute paths of its sources."""
        return "\n".join(os.path.abspath(source) for source in self.sources)

    @property
    def has_many(self) -> bool:
        """Whether a folder or a tar is among the sources."""
        return any(os.path.isdir(source) or _is_tar(source) for source in self.sources)

    @cached_property
    def _count(self) -> int:
        return sum(1 for _ in self)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ImageFile]:
        seen: set[str] = set()
        for source in self.sources:
            found = False
            for file in self._walk(source):
                found = True
                if len(self.sources) > 1:
                    if file.name in seen:
                        continue
                    seen.add(file.name)
                yield file
            if not found:
                kind = "in the folder" if os.path.isdir(source) else "in the tar"
                if os.path.isdir(source) or _is_tar(source):
                    raise ImageError(f"no images {kind} {source}")
                raise ImageError(f"no such file, folder or match: {source}")

    def file(self, relative: str) -> ImageFile:
        """The image of a relative name. Raises ImageError where there is none of this name any more."""
        if self.alone and os.path.isdir(self.sources[0]):
            path = str(Path(self.sources[0]) / relative)
            return ImageFile(path, relative, path)
        if relative not in self._by_name:
            raise ImageError(f"{relative}: not among the images of {', '.join(self.sources)}")
        return self._by_name[relative]

    @cached_property
    def _by_name(self) -> dict[str, ImageFile]:
        return {file.relative: file for file in self}

    def _walk(self, source: str) -> Iterator[ImageFile]:
        if os.path.isdir(source):
            yield from self._folder(Path(source), len(str(Path(source) / "x")) - 1 if self.alone else 0, set())
        elif _is_tar(source):
            yield from self._tar(source)
        elif os.path.isfile(source):
            yield ImageFile(source, source, source)
        else:
            for match in sorted(map(Path, glob.iglob(source, recursive=True))):
                if match.is_file():
                    yield ImageFile(str(match), str(match), str(match))

    def _folder(self, folder: Path, start: int, seen: set[tuple[int, int]]) -> Iterator[ImageFile]:
        """seen: (device, inode) of the folders so far: links to folders are followed, but none is walked twice."""
        try:
            facts = os.stat(folder)
            if (facts.st_dev, facts.st_ino) in seen:
                return
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as listed:
                names = sorted_names(
                    entry.name + _FOLDER if inner else entry.name
                    for entry in listed
                    if (inner := is_folder(entry)) or _is_image(entry.name)
                )
        except OSError as error:
            print(f"skipped the folder {folder}: {error.strerror}", file=sys.stderr)
            return
        for name in names:
            path = str(folder / name)
            if name.endswith(_FOLDER):
                yield from self._folder(folder / name.removesuffix(_FOLDER), start, seen)
            elif _is_image(name) and os.path.isfile(path):
                yield ImageFile(path, path[start:], path)

    def _tar(self, source: str) -> Iterator[ImageFile]:
        try:
            with tarfile.open(source, "r:") as tar:  # members lie as they are: a compressed tar has no places
                while (member := tar.next()) is not None:
                    if member.isreg() and not member.issparse() and _is_image(member.name):
                        relative = member.name if self.alone else f"{source}/{member.name}"
                        whole = f"{source}/{member.name}"
                        yield ImageFile(whole, relative, source, member.offset_data, member.size)
                    tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every one
                if damage := missing_end(source, tar.offset):
                    raise tarfile.ReadError(damage)
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:  # ValueError: of pax headers
            raise ImageError(
                f"{source}: not a whole, uncompressed tar ({error}; {os.path.getsize(source)} bytes); unpack it, or "
                "copy it again"
            ) from None


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_ENDINGS


def _is_tar(source: str) -> bool:
    return source.lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")) and os.path.isfile(source)
