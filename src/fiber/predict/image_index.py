"""Contrastive features of many images in one file, made in batches, used again, and safe from kills.

The file is an ordinary .npz without pickles: features (N,H) fp32, names (N,), stamps (N,3) int64, facts (JSON: of
which model). The arrays lie uncompressed and are mapped, not read: a million images cost little memory.
"""

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fiber.predict.journal import Entry, Journal, key_of
from fiber.predict.listing import ImageList
from fiber.predict.sources import ImageError, ImageFile, Prepared
from fiber.predict.stream import Countdown, in_groups

if TYPE_CHECKING:
    from fiber.predict.image import CoarsePredictor

CHUNK = 4096  # rows copied at a time
TIME = (1980, 1, 1, 0, 0, 0)  # of the members of the file: equal runs give equal files


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


def index_model(predictor: "CoarsePredictor") -> str:
    """The fingerprint of what features of images depend on."""
    return predictor.fingerprint("heads.contrastive.image*", "backbone.image*")


def build_index(predictor: "CoarsePredictor", files: ImageList, out: Path, *, progress: bool = False) -> IndexReport:
    """Write the index `out` (.npz, or .parquet: columns image and features) of `files`. Images that an .npz of the
    same model has already, unchanged (same size and time of change), are taken from there, and a journal beside `out`
    lets a killed run go on. An .npz that is damaged is made again.

    Raises ImageError where no image can be read, ValueError where `out` is something else than an index, cannot be
    written, or is being written by another process.
    """
    parquet, model = out.suffix == ".parquet", index_model(predictor)
    known = KnownFeatures() if parquet else _read_known(out, model)
    rows_file = out.with_name(out.name + ".rows")
    row_bytes = 4 * predictor.width
    try:
        journal = Journal(out, {"model": model}, rows_file.stat().st_size // row_bytes if rows_file.exists() else 0)
        with open(rows_file, "r+b" if rows_file.exists() else "w+b") as rows:
            rows.truncate(journal.rows * row_bytes)
            rows.seek(0, os.SEEK_END)
            report = IndexReport()
            shown = Countdown("embed", len(files), progress)
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


def each_batch(
    predictor: Any, files: Iterable[ImageFile], done: AbstractSet[int], shown: Countdown
) -> Iterator[list[tuple[ImageFile, Prepared | ImageError]]]:
    """The files whose keys are not `done`, prepared, a batch of the predictor at a time."""

    def todo() -> Iterator[ImageFile]:
        for file in files:
            if done and key_of(file.relative, _stamp(file)) in done:
                shown.skip()
            else:
                yield file

    for group in in_groups(predictor.stream(todo()), predictor.batch):
        yield group
        shown.add(len(group))


def entry_of(file: ImageFile, image: Prepared | ImageError, row: Any = None) -> Entry:
    """The journal's entry of an image."""
    fault = str(image) if isinstance(image, ImageError) else None
    return Entry(file.relative, _stamp(file), row, fault)


def _stamp(file: ImageFile) -> tuple[int, int, int]:
    """The stamp of a file, -1 of one that has gone: reading it will say so."""
    try:
        return file.stamp()
    except ImageError:
        return (-1, -1, -1)


def _assemble(
    out: Path,
    files: ImageList,
    journal: Journal,
    known: "KnownFeatures",
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
        stamp = _stamp(file)
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
            _write_parquet(aside, names, chunks())
        else:
            facts = {"format": "fiber features", "model": model}
            write_features(aside, chunks(), (len(names), fresh.shape[1]), names, stamps, facts)
        os.replace(aside, out)
    except OSError as error:
        error.filename = str(out)
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_features(
    file: Path,
    chunks: Iterator[np.ndarray],
    shape: tuple[int, int],
    names: Sequence[str],
    stamps: Sequence[Sequence[int]] | np.ndarray,
    facts: dict[str, Any],
) -> None:
    """An .npz of features (N,H) fp32, which come in pieces, and what they belong to. Equal input, equal bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("features.npy", TIME), "w", force_zip64=True) as member:
            head = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, head)
            for chunk in chunks:
                member.write(chunk.tobytes())
        rest = {"names": np.array(names), "stamps": np.array(stamps, np.int64), "facts": np.array(json.dumps(facts))}
        for name, array in rest.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", TIME), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def write_texts(predictor: "CoarsePredictor", texts: Sequence[str], out: Path) -> None:
    """Features of texts in the same form as those of images, the texts as names. Raises ValueError, OSError."""
    features = predictor.embed_texts(texts).numpy()
    aside = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        if out.suffix == ".parquet":
            _write_parquet(aside, texts, iter([features]))
        else:
            stamps, facts = np.zeros((len(texts), 3), np.int64), {"format": "fiber features", "model": ""}
            write_features(aside, iter([features]), features.shape, texts, stamps, facts)
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)


def _write_parquet(file: Path, names: Sequence[str], chunks: Iterator[np.ndarray]) -> None:
    from fiber.predict.results import parquet

    start, writer = 0, None
    pa, pq = parquet()
    for chunk in chunks:
        column = pa.FixedSizeListArray.from_arrays(pa.array(chunk.ravel()), chunk.shape[1])
        table = pa.table({"image": list(names[start : start + len(chunk)]), "features": column})
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
        start += len(chunk)
    if writer is not None:
        writer.close()


# ---------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class KnownFeatures:
    """Rows of an index by the keys of their images (`key_of`)."""

    rows: dict[int, int] = field(default_factory=dict)
    features: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))


def read_index(file: Path, files: ImageList, report: IndexReport) -> ImageIndex:
    """The index that `build_index` has written."""
    features, names, _, _ = _arrays(file)
    return ImageIndex(files, names.tolist(), torch.from_numpy(features), report.encoded, report.unreadable)


def _read_known(file: Path, model: str) -> KnownFeatures:
    """What an index file has for the model; nothing where there is none, or it is damaged."""
    if not file.exists():
        return KnownFeatures()
    if not _may_be_index(file):
        raise ValueError(f"{file}: no index of images; name another file, or delete this one")
    try:
        with zipfile.ZipFile(file) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} does not fit its checksum")
        features, names, stamps, facts = _arrays(file)
        if facts["model"] != model:
            return KnownFeatures()
        keys = (key_of(name, stamp) for name, stamp in zip(names.tolist(), stamps.tolist(), strict=True))
        return KnownFeatures({key: row for row, key in enumerate(keys)}, features)
    except Exception as error:  # a damaged zip raises a dozen kinds
        print(f"{file}: a damaged index ({error}); it is built again", file=sys.stderr)
        return KnownFeatures()


def _arrays(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Features (mapped), names, stamps and facts of an index file."""
    with np.load(file, allow_pickle=False) as saved:
        names, stamps, facts = saved["names"], saved["stamps"], json.loads(str(saved["facts"]))
    with file.open("rb") as stream:
        stream.seek(26)  # of the local header of the first member: the lengths of its name and of its extra field
        lengths = int.from_bytes(stream.read(2), "little"), int.from_bytes(stream.read(2), "little")
        stream.seek(30 + sum(lengths))
        np.lib.format.read_magic(stream)
        shape, _, kind = np.lib.format.read_array_header_1_0(stream)
        # "c": what is written to the array, which torch wants to be possible, never comes to the file.
        features = np.memmap(stream, kind, "c", stream.tell(), shape)
    if len(features) != len(names):
        raise ValueError(f"{len(features)} features of {len(names)} images")
    return features, names, stamps, facts


def _may_be_index(file: Path) -> bool:
    """Whether `file` is ours to replace: an .npz of an index, whole or cut short, and not, say, a photograph."""
    if not file.is_file():
        return False
    with file.open("rb") as start:
        head = start.read(42)  # signature, 26 bytes that vary, the name of the first array
    return b"PK\3\4".startswith(head[:4]) and b"features.npy".startswith(head[30:])
