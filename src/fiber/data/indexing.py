"""Making the index of a folder of shards: from samples as they are written, or by one pass over tars."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from fiber.data.index import INDEX_VERSION, Index
from fiber.data.records import EXTENSIONS, FIELDS, Record, count

SPOOL = 1 << 20  # bytes of a column that stay in memory
BLOCK = 512  # tar's block size: headers and data are padded to it
COLUMNS = {  # of index.npz: the type of a row
    "record": np.dtype((np.int64, 2)),
    "first_image": np.dtype(np.int64),
    "images": np.dtype((np.int64, 2)),
    "extension": np.dtype(np.uint8),
    "counts": np.dtype((np.int32, len(FIELDS))),
    "keys": np.dtype(np.uint8),
    "key_end": np.dtype(np.int64),
}


@dataclass
class Members:
    """Where the members of one sample lie in its tar: (offset, size) of the data."""

    key: str
    record: tuple[int, int] = (0, 0)
    images: list[tuple[int, int, int]] = field(default_factory=list)  # offset, size, index into EXTENSIONS
    counts: list[int] | None = None  # by FIELDS; None where the record is missing or says nothing


class IndexBuilder:
    """Collects the rows of shards one by one, in files without names: memory does not grow with the set.

    folder: where those files lie when they are large (default: the system's place for temporary files).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.shards: list[dict[str, Any]] = []
        self.sums = np.zeros(len(FIELDS), np.int64)  # annotations by field
        self.lengths = dict.fromkeys(COLUMNS, 0)
        place = str(folder) if folder else None
        self.columns = {name: tempfile.SpooledTemporaryFile(SPOOL, dir=place) for name in COLUMNS}  # noqa: SIM115
        self.add(_rows([], []))  # the zero before the first image

    def add_shard(self, name: str, members: list[Members], size: int, sha256: str, damage: str | None = None) -> None:
        """Appends a finished shard."""
        shard = {"name": name, "samples": len(members), "bytes": size, "sha256": sha256}
        self.add(_rows([shard | ({"damage": damage} if damage else {})], members))

    def add(self, piece: Index) -> None:
        """Appends the rows of an index of the same fields, which may go afterwards."""
        if piece.fields != FIELDS:
            raise ValueError("indexes of different fields do not join")
        moved = {
            "first_image": piece.first_image[min(self.lengths["first_image"], 1) :] + self.lengths["images"],
            "key_end": piece.key_end + self.lengths["keys"],
        }
        for name in COLUMNS:
            rows = moved.get(name, getattr(piece, name))
            self.columns[name].write(np.asarray(rows, COLUMNS[name].base).tobytes())
            self.lengths[name] += len(rows)
        self.shards += piece.shards
        self.sums += piece.counts.clip(0).sum(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.lengths["record"]

    def totals(self) -> dict[str, int]:
        """Annotations by field over all samples, the fields without any left out."""
        return {name: int(n) for name, n in zip(FIELDS, self.sums, strict=True) if n}

    def _blocks(self, name: str) -> Iterator[np.ndarray]:
        """The rows of a column, some at a time. A sample without a usable record counts once in every field the set
        has: drawing it is how the stream notices and counts the fault, leaving it out would lose it silently."""
        dtype = COLUMNS[name]
        self.columns[name].seek(0)
        while block := self.columns[name].read(SPOOL // dtype.itemsize * dtype.itemsize):
            rows = np.frombuffer(block, dtype)
            yield np.where(rows[:, :1] < 0, (self.sums > 0).astype(np.int32), rows) if name == "counts" else rows

    def build(self) -> Index:
        """The index, in memory."""
        columns: dict[str, Any] = {n: np.concatenate([np.zeros(0, t), *self._blocks(n)]) for n, t in COLUMNS.items()}
        return Index(self.shards, **columns)

    def save(self, folder: Path) -> None:
        """Writes index.npz, then index.json, each aside and renamed, so a reader never sees half an index."""
        aside = folder / f".index.{os.getpid()}.npz"
        with zipfile.ZipFile(aside, "w") as archive:
            for name, dtype in COLUMNS.items():
                header = {"descr": dtype.base.str, "fortran_order": False}
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                    npy.write_array_header_1_0(file, header | {"shape": (self.lengths[name], *dtype.shape)})
                    for rows in self._blocks(name):
                        file.write(rows.tobytes())
        os.replace(aside, folder / "index.npz")
        aside = folder / f".index.{os.getpid()}.json"
        listed = {"version": INDEX_VERSION, "fields": FIELDS, "shards": self.shards}
        aside.write_text(json.dumps(listed, indent=1) + "\n")
        os.replace(aside, folder / "index.json")


def _rows(shards: list[dict[str, Any]], members: list[Members]) -> Index:
    """The index of these members, -1 for counts that are not known."""
    images = [image for m in members for image in m.images]
    keys = [m.key.encode() for m in members]
    return Index(
        shards=shards,
        record=np.array([m.record for m in members], dtype=np.int64).reshape(-1, 2),
        first_image=np.cumsum([0] + [len(m.images) for m in members], dtype=np.int64),
        images=np.array([i[:2] for i in images], dtype=np.int64).reshape(-1, 2),
        extension=np.array([i[2] for i in images], dtype=np.uint8),
        counts=np.array([m.counts or [-1] * len(FIELDS) for m in members], np.int32).reshape(-1, len(FIELDS)),
        keys=np.frombuffer(b"".join(keys), dtype=np.uint8),
        key_end=np.cumsum([len(k) for k in keys], dtype=np.int64),
    )


def record_counts(record: Record) -> list[int] | None:
    """Annotations by FIELDS; None where there are none at all."""
    counts = [count(record, name) for name in FIELDS]
    return counts if any(counts) else None


def split_member(name: str) -> tuple[str, str]:
    """A member's (key, suffix): the key ends at the first dot of the base name, as WebDataset has it."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), suffix.lower()


def scan_tar(file: BinaryIO) -> tuple[list[Members], str | None]:
    """The samples of one tar, in order, and what is wrong with it (None: whole).

    tarfile ends silently at a corrupt header; a whole tar ends with a block of zeros, so anything else is damage.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    samples: dict[str, Members] = {}
    damage = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                _note_member(samples, member, file)
            end = tar.offset
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            damage = f"no end-of-archive mark at byte {end} of {size}"
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:  # ValueError: of pax headers
        damage = f"{error} ({size} bytes)"
    return list(samples.values()), damage


def _note_member(samples: dict[str, Members], member: tarfile.TarInfo, file: BinaryIO) -> None:
    key, suffix = split_member(member.name)
    extension = suffix.rpartition(".")[2].replace("jpeg", "jpg")
    extent = (member.offset_data, member.size)
    if suffix == "json":
        sample = samples.setdefault(key, Members(key))
        sample.record = extent
        position = file.tell()
        file.seek(extent[0])
        try:
            record = json.loads(file.read(extent[1]))
            sample.counts = record_counts(record)
        except (ValueError, TypeError, AttributeError, RecursionError):
            sample.counts = None  # unreadable: counted as a fault when it is drawn
        file.seek(position)
    elif extension in EXTENSIONS:
        samples.setdefault(key, Members(key)).images.append((*extent, EXTENSIONS.index(extension)))
