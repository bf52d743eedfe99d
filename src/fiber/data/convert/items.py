"""What a converter yields: items (a record and where its images are) and drops (what was left out and why)."""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fiber.data.records import Record, Sample
from fiber.errors import KnownError


class ConversionError(KnownError):
    """The conversion cannot go on: one message that names the file and says what to do about it."""


class UnusableItem(Exception):
    """An item cannot be stored. `reason` is a short stable phrase for counting, `detail` the rest."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Drop:
    """Something not in the result: a whole image, or one annotation of it.

    reason: short stable phrase to count by. subject: image id. detail: the rest.
    kept: only noted (a clipped box), not lost.
    """

    reason: str
    subject: str
    detail: str = ""
    kept: bool = False


@dataclass(frozen=True)
class RawImage:
    """Where encoded bytes lie: the first of ``paths`` that is a file; of that file, ``length`` bytes from ``offset``.

    line: the bytes are the base64 text in the last column of the line that begins at ``offset`` (TSV of GLIP).
    """

    paths: tuple[str, ...]
    offset: int = 0
    length: int | None = None
    line: bool = False

    def read(self) -> bytes:
        """The encoded bytes. Raises UnusableItem("missing image") naming the first place looked at."""
        for path in self.paths:
            try:
                if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would never end
                    continue
                with open(path, "rb") as file:
                    if self.offset:
                        file.seek(self.offset)
                    if self.line:
                        return base64.b64decode(file.readline().rstrip(b"\r\n").rpartition(b"\t")[2])
                    return file.read() if self.length is None else file.read(self.length)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                continue
            except OSError as error:
                raise UnusableItem("unreadable file", str(error)) from None
            except ValueError as error:  # base64
                raise UnusableItem("broken image", str(error)) from None
        raise UnusableItem("missing image", self.paths[0] if self.paths else "no path")


@dataclass(frozen=True)
class RawItem:
    """One image (two for a pair) before its pixels are read.

    record: as in `fiber.data.records`, without width and height; boxes in pixels of the annotated size.
    size: (width, height) the annotations were made for, where the files say so.
    drops: annotations the converter itself left out of this record.
    fractions: boxes are [center x, center y, width, height] as shares of the image's sides (YOLO), until it is read.
    """

    record: Record
    images: tuple[RawImage, ...]
    size: tuple[int, int] | None = None
    drops: tuple[Drop, ...] = ()
    fractions: bool = False

    @property
    def image_id(self) -> str:
        """The record's."""
        return self.record["image_id"]


@dataclass(frozen=True)
class Made:
    """A sample that is computed, not read. make: picklable, called in a worker."""

    image_id: str
    make: Callable[[], Sample]


@dataclass
class RawDataset:
    """A data set as a converter understands it.

    name: of a folder or a file, perhaps; what a shard's name cannot have becomes "_" or goes.
    items: Items (or Made ones) and Drops in a fixed order, the order of the shards. total: their number, if known.
    placeholders: the images come from the web, where a host may answer with one and the same "not available"
    image: bytes seen three times in a shard are dropped.
    repeats: an image may come several times, each time with other annotations (ODVG's groundings; one photograph as
    Visual Genome's file and as COCO's).
    tars: the WebDataset tars that the images lie in, in the order of the items; they can be used as they lie.
    reads: the files that items are read from (annotations, lists, labels, tars), and folders of images with texts. If
    they change, what was made before is not taken for complete. Nothing here: a change is not noticed.
    """

    name: str
    split: str
    licence: str
    provenance: dict[str, Any]
    items: Iterable[RawItem | Made | Drop]
    total: int | None = None
    categories: list[dict[str, Any]] | None = None
    answers: list[str] | None = None
    placeholders: bool = False
    repeats: bool = False
    notes: list[str] = field(default_factory=list)
    tars: list[Path] = field(default_factory=list)
    reads: Iterable[str | Path] = ()

    def __post_init__(self) -> None:
        # A shard is called like it, and its name neither begins so nor is longer than a file system takes.
        self.name = re.sub("[^A-Za-z0-9._+-]+", "_", self.name).lstrip(".-")[:80] or "set"


@dataclass(frozen=True)
class Request:
    """What the user asked of a converter: the options of `fiber shards` that decide what is read.

    raw: folder with the files as downloaded. annotations, images: places that differ from the official layout.
    variant: which of the things a module can read (its VARIANTS). answers: a ready answer vocabulary (VQA).
    format, classes: of one's own boxes; the next group belongs to one's own pairs, the last to the generated sets.
    """

    split: str
    raw: Path = Path()
    annotations: Path | None = None
    images: Path | None = None
    variant: str | None = None
    answers: Path | None = None
    config: Path | None = None
    limit: int | None = None
    format: str | None = None
    classes: Path | None = None

    image_column: str | None = None
    text_column: str | None = None
    image_key: str | None = None
    text_key: str | None = None
    in_place: bool = False

    world: str = "easy"
    image_size: int | None = None
    seed: int = 0
    captions: str = "mixed"


T = TypeVar("T")


def each(
    entries: Iterable[T], make: Callable[[T], Iterable[RawItem | Drop]], source: str
) -> Iterator[RawItem | Drop]:
    """What `make` gives for every entry of a file. One that lacks something, or is no entry, costs itself alone."""
    for entry in entries:
        try:
            made = list(make(entry))
        except (KeyError, TypeError, IndexError, ValueError, AttributeError, OverflowError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            yield Drop("entry malformed", source, f"{entry!r:.200}: {what:.200}")
        else:
            yield from made


def existing(candidates: Sequence[Path], what: str) -> Path:
    """The first candidate that exists. Raises ConversionError listing all of them."""
    for path in candidates:
        if path.exists():
            return path
    tried = "".join(f"\n  {path}" for path in candidates)
    raise ConversionError(f"{what} not found; looked for{tried}\nsee docs/data.md for the expected folder")


def image_in(folders: Iterable[Path | str], *names: str) -> RawImage:
    """An image that may lie under any of the folders under any of the names."""
    return RawImage(tuple(os.path.join(folder, name) for folder in folders for name in names))
