"""Shards: ordinary WebDataset tars of `KEY.jpg` and `KEY.json`, written reproducibly, read by offset.

A data set is a folder: NAME-000000.tar, ..., dataset.json (what it is) and an index (fiber.data.index).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fiber.data.index import Index
from fiber.data.indexing import IndexBuilder, scan_tar
from fiber.data.records import EXTENSIONS, FIELDS, REQUIRED, Record, Sample, SetFacts, broken, check_categories
from fiber.data.remote import RemoteFolder, check_shard_name
from fiber.errors import SampleFault, ShardError, without_secrets

log = logging.getLogger(__name__)

RECORDS = "records.jsonl"  # beside tars of others that are used as they lie: the records, where shards say "records"
OPEN_FILES = 64  # shards of a set that a process keeps open, and that stay in the cache of a remote set


def build_index(folder: str | Path) -> Index:
    """Reads every *.tar of a folder once and writes its index; damage is kept in it and logged."""
    folder = Path(folder)
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise ShardError(f"{folder}: no *.tar shards here (make them with `fiber shards`)")
    for path in paths:
        check_shard_name(path.name, folder)  # before any is read
    return _index_of(paths, folder)


def _index_of(paths: Iterable[Path], folder: Path) -> Index:
    builder = IndexBuilder(folder if os.access(folder, os.W_OK) else None)
    for path in paths:
        try:
            with open(path, "rb") as file:
                members, damage = scan_tar(file)
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                builder.add_shard(path.name, members, file.tell(), digest, damage)
        except OSError as error:
            raise ShardError(f"{path} cannot be read: {error.strerror}") from None
        shard = builder.shards[-1]
        if "damage" in shard:
            log.warning("%s is damaged after %d samples: %s", path, shard["samples"], shard["damage"])
    try:
        builder.save(folder)
        stored = Index.load(folder)
    except OSError as error:
        log.warning("%s: the index could not be stored (%s); it is rebuilt every time", folder, error)
        stored = None
    return stored or builder.build()


def _info(folder: Path) -> dict[str, Any]:
    """The contents of dataset.json, {} without one. Raises ShardError; name and split go into names of files."""
    described = folder / "dataset.json"
    try:
        info = json.loads(described.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(f"{described} does not parse ({error}): mend it, or remove it") from None
    if not isinstance(info, dict):
        raise ShardError(f"{described} is not a JSON object: mend it, or remove it")
    for key in ("name", "split"):
        value = info.get(key, "unnamed")
        text = value if isinstance(value, str) and value.isprintable() else ".."
        if text in (".", "..") or set(text) & set("/\\") or len(text.encode()) > 100:
            raise ShardError(f"{described}: {key} {value!r:.200} must be a text without slashes (it names files)")
    try:
        check_categories(info.get("categories") or ())
        if not all(isinstance(answer, str) for answer in info.get("answers") or ()):
            raise ValueError("answers must be texts")
    except (ValueError, TypeError) as error:
        raise ShardError(f"{described}: {error}") from None
    return info


def dataset_info(path: str) -> dict[str, Any]:
    """What dataset.json says of a set, {} without one; the index is not opened. `path` as for ShardSet. Raises
    ShardError."""
    if not RemoteFolder.is_remote(path):
        return _info(Path(path))
    remote = RemoteFolder(path, keep=OPEN_FILES)
    if remote.shards:  # nothing else lies there, and the template names no file
        return {}
    try:
        remote.fetch("dataset.json")
    except OSError as error:
        raise ShardError(f"{without_secrets(path)}: {error}") from None
    return _info(remote.folder)


class ShardSet:
    """A data set of shards, read at random by sample number 0..len-1 (the order of the shards).

    path: a folder, or a remote location as fiber.data.remote has it. Safe to share with forked or spawned workers:
    reading uses os.pread and keeps no position.
    Raises ShardError where the folder, a shard or the index does not fit.
    """

    def __init__(self, path: str | Path):
        self.remote = RemoteFolder(str(path), keep=OPEN_FILES) if RemoteFolder.is_remote(str(path)) else None
        self.path = str(path) if self.remote else Path(path)
        self.where = without_secrets(str(path))  # for messages and files
        self.folder: Path = self.remote.folder if self.remote else Path(path)
        if not self.folder.is_dir():
            raise ShardError(f"{self.where}: no such folder of shards")
        self._files: dict[int, int] = {}
        self.index = self._load_remote_index(self.remote) if self.remote else self._load_index()
        self.fingerprint, self.first_fingerprint = self.index.fingerprint(), self.index.first_fingerprint()
        self.info = _info(self.folder)
        self.name: str = self.info.get("name") or self.folder.name
        self.facts = SetFacts.of(str(self.path), self.categories)
        self.starts = np.cumsum([0] + [s["samples"] for s in self.index.shards], dtype=np.int64)

    def _load_index(self) -> Index:
        index = Index.load(self.folder) or build_index(self.folder)
        listed = {s["name"]: s["bytes"] for s in index.shards}
        for name, size in listed.items():
            try:
                grown = (self.folder / name).stat().st_size > size
            except FileNotFoundError:
                raise ShardError(f"{self.folder / name} is missing (the index lists it)") from None
            if grown:
                raise ShardError(f"{self.folder / name} is newer than the index: delete {self.folder / 'index.json'}")
        extra = sorted({p.name for p in self.folder.glob("*.tar")} - set(listed))
        if extra:
            raise ShardError(f"{self.folder / extra[0]} is not in the index: delete {self.folder / 'index.json'}")
        return index

    def _load_remote_index(self, remote: RemoteFolder) -> Index:
        try:
            if remote.shards:
                return Index.load(self.folder) or _index_of(map(remote.fetch, remote.shards), self.folder)
            remote.fetch_index()
            remote.fetch("dataset.json", again=True)
            index = Index.load(self.folder)
            if index is None:  # a damaged copy, perhaps
                remote.fetch_index(again=True)
                index = Index.load(self.folder)
        except OSError as error:
            raise ShardError(f"{self.where}: {error}") from None
        if index is None:
            raise ShardError(f"{self.where}: its index is of another version; build it again where the shards lie")
        remote.sha256 = {shard["name"]: shard["sha256"] for shard in index.shards}
        return index

    def __len__(self) -> int:
        return len(self.index)

    def view(self, name: str, samples: int | None = None) -> ShardSet:
        """The same set under another name, or its first `samples` alone; nothing is opened again."""
        part = object.__new__(ShardSet)  # copy.copy would go by what travels to workers, and open the set again
        vars(part).update(vars(self))
        part.name, part._files = name, {}
        if samples is not None:
            part.index = self.index.head(samples)
            part.starts = np.minimum(self.starts, samples)
        return part

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "name": self.name, "samples": len(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ShardSet.__init__(self, state["path"])
        vars(self).update(vars(self.view(state["name"], state["samples"])))

    @property
    def categories(self) -> list[dict[str, Any]]:
        """[{"id", "name", "frequency"?}] of dataset.json, empty where the set has none."""
        return self.info.get("categories") or []

    @property
    def answers(self) -> list[str]:
        """The VQA answer vocabulary, order = label index, empty where the set has none."""
        return self.info.get("answers") or []

    def counts(self, field: str) -> np.ndarray:
        """int32 (N,): annotations of `field` by sample."""
        if field not in FIELDS:
            raise ShardError(f"{field!r} is not an annotation field; one of {', '.join(FIELDS)}")
        counts = self.index.count(field)
        most = sum(shard["bytes"] for shard in self.index.shards)
        if counts.size and not 0 <= counts.min() <= counts.sum(dtype=np.int64) <= most:
            raise ShardError(f"{self.where}: its index counts impossible {field}: delete index.json and index.npz")
        return counts

    def count(self, field: str) -> int:
        """Annotations of `field` in the set."""
        return int(self.counts(field).sum())

    def shard_of(self, i: int) -> int:
        """The number of the shard that holds sample i."""
        return int(np.searchsorted(self.starts, i, side="right") - 1)

    def place(self, i: int) -> tuple[str, str]:
        """(shard file name, key) of sample i, for messages."""
        return self.index.shards[self.shard_of(i)]["name"], self.index.key(i)

    def damaged(self) -> list[tuple[str, str]]:
        """(shard, what is wrong) for the tars that were cut short when the index was built."""
        return [(s["name"], s["damage"]) for s in self.index.shards if "damage" in s]

    def verify(self) -> list[str]:
        """Re-reads every shard; one line for each that no longer has the indexed bytes."""
        wrong = []
        for shard in self.index.shards:
            with open(self._open(shard["name"]), "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                    wrong.append(f"{shard['name']}: bytes differ from the index")
        return wrong + [f"{name}: {damage}" for name, damage in self.damaged()]

    def record(self, i: int) -> Record:
        """The record of sample i without its images. Raises SampleFault as `read` does."""
        offset, size = self.index.record[i].tolist()
        if size == 0:
            raise SampleFault("missing_json", "the sample has no JSON member")
        try:
            record = json.loads(self._pread(i, offset, size, "records" in self.index.shards[self.shard_of(i)]))
        except (ValueError, RecursionError) as error:
            raise SampleFault("bad_json", f"its JSON does not parse: {error}") from None
        missing = [key for key in REQUIRED if not isinstance(record, dict) or key not in record]
        if missing:
            raise SampleFault("missing_field", f"its JSON lacks {', '.join(missing)}")
        return record

    def valid_records(self, first: int) -> list[Record]:
        """Those of the first samples that can be read and keep to the schema, to judge a set by."""
        found = []
        for i in range(min(first, len(self))):
            with suppress(SampleFault):
                found += [record] if broken(record := self.record(i)) is None else []
        return found

    def read(self, i: int) -> Sample:
        """Sample i with its encoded images.

        Raises SampleFault: "missing_json", "bad_json", "missing_field", "missing_image", "truncated_shard",
        "unreadable_shard".
        """
        record = self.record(i)
        first, last = self.index.first_image[i : i + 2].tolist()
        if not 0 <= first < last <= len(self.index.images):
            raise SampleFault("missing_image", "the sample has no image member")
        extents, kinds = self.index.images[first:last].tolist(), self.index.extension[first:last].tolist()
        # An extension out of range is a damaged index's; decoding goes by the bytes alone.
        images = [(EXTENSIONS[min(k, 2)], self._pread(i, *extent)) for k, extent in zip(kinds, extents, strict=True)]
        return Sample(self.index.key(i), images, record, self.facts)

    def _pread(self, i: int, offset: int, size: int, beside: bool = False) -> bytes:
        try:
            file = self._descriptor(-1 if beside else self.shard_of(i))
            length = os.fstat(file).st_size  # before memory is asked for: an index may say anything
            data = os.pread(file, size, offset) if offset >= 0 and 0 <= size <= length - offset else b""
        except OSError as error:
            raise SampleFault("unreadable_shard", str(error)) from None
        if len(data) != size:
            raise SampleFault("truncated_shard", f"the shard ends at byte {length}, before {offset:,} + {size:,}")
        return data

    def _descriptor(self, shard: int) -> int:
        if shard not in self._files:
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = self._open(self.index.shards[shard]["name"] if shard >= 0 else RECORDS)
        return self._files[shard]

    def _open(self, name: str) -> int:
        return self.remote.open(name) if self.remote else os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)
