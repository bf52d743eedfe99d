"""Writing shard sets: tars of one size, their index, and `dataset.json`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

from fiber.data.indexing import BLOCK, IndexBuilder, Members, record_counts
from fiber.data.records import EXTENSIONS, RecordError, Sample, validate_record
from fiber.data.remote import check_shard_name
from fiber.errors import ShardError
from fiber.images.codec import sniff


class _HashingFile(io.RawIOBase):
    """A write-only file that hashes what passes, so a finished shard need not be read again."""

    def __init__(self, path: Path):
        self.file = open(path, "wb")  # noqa: SIM115 (closed by close)
        self.hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        written = self.file.write(data)
        self.hash.update(data)
        self.size += written
        return written

    def tell(self) -> int:
        return self.size

    def close(self) -> None:
        self.file.close()
        super().close()


class ShardWriter:
    """Writes samples into NAME-000000.tar, NAME-000001.tar, ... and, on a clean exit, the index.

    Equal samples give equal bytes. Every shard is written aside and renamed when whole. A folder that already has
    shards of this name raises ShardError, and so does a name that a shard cannot have. Use as a context manager.

    max_samples, max_bytes: a shard is closed when it reaches either.
    """

    def __init__(self, out_dir: str | Path, name: str, *, max_samples: int = 1000, max_bytes: int = 500_000_000):
        check_shard_name(f"{name}-000000.tar", Path(out_dir))  # before the work, not when the set is opened
        self.folder, self.name = Path(out_dir), name
        self.max_samples, self.max_bytes = max_samples, max_bytes
        self.builder = IndexBuilder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(f".{name}-*.tar"):
            stale.unlink()
        if any(self.folder.glob(f"{name}-[0-9]*.tar")):
            raise ShardError(f"{self.folder} already holds shards of {name!r}: choose another folder")
        self.keys: set[str] = set()
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self._finish_shard()
            self.builder.save(self.folder)
        elif self._tar is not None:
            self._file.close()
            self._aside.unlink()

    def add(self, sample: Sample) -> None:
        """Appends one sample. The extension follows the image's magic bytes where they are known.

        Raises ShardError on a key with a dot, slash or blank, a key seen before, or an unknown extension,
        RecordError on a record that JSON cannot hold.
        """
        key = sample.key
        if not key or any(c in key for c in "./ ") or not key.isprintable():
            raise ShardError(f"key {key!r}: use a non-empty key without dots, slashes and blanks")
        if key in self.keys:
            raise ShardError(f"key {key!r} comes twice: keys are unique in a data set")
        if not sample.images:
            raise ShardError(f"key {key!r} has no image")
        try:  # before anything is written
            text = json.dumps(sample.record, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:  # an infinite number, half of a surrogate pair
            raise RecordError("bad_field", f"key {key!r} cannot be stored as JSON: {error}") from None
        members = Members(key, counts=record_counts(sample.record))
        if self._tar is None:
            self._start_shard()
        for i, (extension, data) in enumerate(sample.images):
            extension = sniff(data) or extension
            if extension not in EXTENSIONS:
                raise ShardError(f"key {key!r}: extension {extension!r} is not one of {EXTENSIONS}")
            number = f".{i}" if len(sample.images) > 1 else ""
            extent = self._write(f"{key}{number}.{extension}", data)
            members.images.append((*extent, EXTENSIONS.index(extension)))
        members.record = self._write(f"{key}.json", text)
        self.keys.add(key)
        self._members.append(members)
        if len(self._members) >= self.max_samples or self._file.size >= self.max_bytes:
            self._finish_shard()

    def _start_shard(self) -> None:
        self._shard = f"{self.name}-{len(self.builder.shards):06d}.tar"
        self._aside = self.folder / f".{self._shard}"
        self._file = _HashingFile(self._aside)
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
        self._members: list[Members] = []

    def _write(self, name: str, data: bytes) -> tuple[int, int]:
        info = tarfile.TarInfo(name)  # mtime, uid and gid are 0: the bytes depend on the samples alone
        info.size, info.mode = len(data), 0o644
        assert self._tar is not None  # between _start_shard and _finish_shard
        self._tar.addfile(info, io.BytesIO(data))
        return self._tar.offset - -(-len(data) // BLOCK) * BLOCK, len(data)

    def _finish_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._file.close()
        os.replace(self._aside, self.folder / self._shard)
        self.builder.add_shard(self._shard, self._members, self._file.size, self._file.hash.hexdigest())
        self._tar = None


def write_dataset(
    samples: Iterable[Sample],
    out_dir: str | Path,
    *,
    name: str,
    split: str,
    provenance: str | dict[str, Any],
    licence: str,
    categories: list[dict[str, Any]] | None = None,
    answers: list[str] | None = None,
    max_samples: int = 1000,
    max_bytes: int = 500_000_000,
) -> dict[str, Any]:
    """Writes a whole data set: shards, index and dataset.json, whose contents are returned.

    categories: [{"id", "name", "frequency"?}]; answers: the VQA vocabulary, order = label index.
    Every record is validated: RecordError names the sample's key, field and index.
    """
    known = {c["id"] for c in categories} if categories else None
    with ShardWriter(out_dir, name, max_samples=max_samples, max_bytes=max_bytes) as writer:
        for sample in samples:
            try:
                validate_record(sample.record, known)
            except RecordError as error:
                raise RecordError(error.reason, f"sample {sample.key!r}: {error}") from None
            writer.add(sample)
    if not len(writer.builder):
        raise ShardError(f"{out_dir}: no samples came, a data set needs at least one")
    info = {
        "name": name,
        "split": split,
        "samples": len(writer.builder),
        "annotations": writer.builder.totals(),
        "categories": categories or [],
        "answers": answers or [],
        "provenance": provenance,
        "licence": licence,
        "created_by": "fiber",
    }
    aside = Path(out_dir) / ".dataset.json"
    aside.write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n")
    os.replace(aside, Path(out_dir) / "dataset.json")
    return info
