"""Contrastive features of many images in one file, made in batches, used again, and safe from kills."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from torch import Tensor

from fiber.countdown import Countdown
from fiber.predict.feature_file import KnownFeatures, read_features, read_known, write_features, write_parquet
from fiber.predict.journal import Journal, each_batch, entry_of, key_of, stamp_of
from fiber.predict.listing import ImageList
from fiber.predict.sources import ImageError, ImageFile, Prepared

CHUNK = 4096  # rows copied at a time


class Embedder(Protocol):
    """What `build_index` needs of a predictor (`CoarsePredictor`)."""

    batch: int

    @property
    def width(self) -> int:
        """H."""

    def fingerprint(self, *patterns: str) -> str:
        """A name for the weights."""

    def stream(self, files: Iterable[ImageFile]) -> Iterator[tuple[ImageFile, Prepared | ImageError]]:
        """Images, prepared."""

    def features(self, images: list[Prepared]) -> Sequence[Tensor]:
        """(H,) of each image."""

    def fitting(
        self, images: list[Prepared], compute: Callable[[list[Prepared]], Sequence[Tensor]]
    ) -> Sequence[Tensor]:
        """`compute` of as many images at a time as memory allows."""


@dataclass(frozen=True)
class ImageIndex:
    """Features (N,H) fp32 of the images with the relative names `paths` of `files`; how many of them were `encoded`
    now rather than read from a file; what could not be read, with the reason."""

    files: ImageList
    paths: list[str]
    features: Tensor
    encoded: int
    unreadable: list[str]


@dataclass
class IndexReport:
    """What `build_index` did: images in the file, how many of them it encoded, what could not be read."""

    images: int = 0
    encoded: int = 0
    unreadable: list[str] = field(default_factory=list)


def cache_folder() -> Path:
    """$FIBER_CACHE, else fiber/ in $XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FIBER_CACHE") or Path(home) / "fiber")


def cache_file(place: str, model: str) -> Path:
    """Where the index of the images at `place` (`ImageList.place`) for a model (`Predictor.fingerprint`) is kept."""
    name = hashlib.sha256(json.dumps([place, model]).encode()).hexdigest()[:32]
    return cache_folder() / "index" / f"{name}.npz"


def index_model(predictor: Embedder) -> str:
    """The fingerprint of what features of images depend on."""
    return predictor.fingerprint("heads.contrastive.image*", "backbone.image*")


def build_index(predictor: Embedder, files: ImageList, out: Path, *, progress: bool = False) -> IndexReport:
    """Write the index `out` (.npz, or .parquet: columns image and features) of `files`. Images that an .npz of the
    same model has already, unchanged (same size and time of change), are taken from there, and a journal beside `out`
    lets a killed run go on. An .npz that is damaged is made again.

    Raises ImageError where no image can be read, ValueError where `out` is something else than an index, cannot be
    written, or is being written by another process.
    """
    parquet, model = out.suffix == ".parquet", index_model(predictor)
    known = KnownFeatures() if parquet else read_known(out, model)
    rows_file = out.with_name(out.name + ".rows")
    row_bytes = 4 * predictor.width
    try:
        journal = Journal(out, {"model": model}, rows_file.stat().st_size // row_bytes if rows_file.exists() else 0)
        with closing(journal), open(rows_file, "r+b" if rows_file.exists() else "w+b") as rows:
            rows.truncate(journal.rows * row_bytes)
            rows.seek(0, os.SEEK_END)
            report = IndexReport()
            shown = Countdown("embed", len(files), show=progress)
            for found in each_batch(predictor, files, known.rows.keys() | journal.done, shown):
                images = [image for _, image in found if isinstance(image, Prepared)]
                features = predictor.fitting(images, predictor.features) if images else []
                rows.write(b"".join(feature.numpy().tobytes() for feature in features))
                rows.flush()
                journal.append([entry_of(file, image) for file, image in found])
                report.encoded += len(images)
            shown.close()
            try:
                _assemble(out, files, journal, known, rows, model, report)
            except ImageError:  # there is nothing to go on with
                rows_file.unlink()
                journal.remove()
                raise
        rows_file.unlink()
        journal.remove()
    except OSError as error:
        raise ValueError(f"{error.filename or out}: {error.strerror}; name another file") from None
    return report


def _assemble(
    out: Path,
    files: ImageList,
    journal: Journal,
    known: KnownFeatures,
    rows: IO[bytes],
    model: str,
    report: IndexReport,
) -> None:
    """Write `out` in the order of the images, from what was known and what the journal has."""
    new: dict[int, int] = {}
    faults: dict[int, str] = {}
    for entry in journal:
        if entry.fault is None:
            new[entry.key] = len(new)
        else:
            faults[entry.key] = entry.fault
    names, stamps, places = [], [], []
    for file in files:
        stamp = stamp_of(file)
        key = key_of(file.relative, stamp)
        if key in faults:
            report.unreadable.append(faults[key])
        elif key in new or key in known.rows:
            names.append(file.relative)
            stamps.append(stamp)
            places.append(~new[key] if key in new else known.rows[key])
    if not names:
        raise ImageError(f"none of {len(files)} images could be read: {report.unreadable[0]}")
    report.images = len(names)
    fresh = np.memmap(rows, np.float32, "r").reshape(len(new), -1) if new else known.features
    order = np.array(places)

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, len(order), CHUNK):
            part = order[start : start + CHUNK]
            block = np.empty((len(part), fresh.shape[1]), np.float32)
            block[part < 0] = fresh[~part[part < 0]]
            if len(known.rows):
                block[part >= 0] = known.features[part[part >= 0]]
            yield block

    if len(known.rows) == len(names) and not new:
        return  # as it was
    aside = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        if out.suffix == ".parquet":
            write_parquet(aside, names, chunks())
        else:
            facts = {"format": "fiber features", "model": model}
            write_features(aside, chunks(), (len(names), fresh.shape[1]), names, stamps, facts)
        os.replace(aside, out)
    except OSError as error:
        error.filename = str(out)
        raise
    finally:
        aside.unlink(missing_ok=True)


def read_index(file: Path, files: ImageList, report: IndexReport) -> ImageIndex:
    """The index that `build_index` has written."""
    features, names, _, _ = read_features(file)
    return ImageIndex(files, names.tolist(), torch.from_numpy(features), report.encoded, report.unreadable)
