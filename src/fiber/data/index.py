"""The index beside a folder of shards: where every member of every sample lies, so that seeking is arithmetic.

`index.json` lists the shards (name, samples, bytes, sha256, damage), whose bytes the fingerprint stands for, and the
annotation fields that are counted; `index.npz` holds one row per sample. Written by the shard writer; built by one
pass over the tars where it is absent.

The arrays are mapped into memory where they lie in the file, not read: the ranks of a machine share the pages, and
opening a set takes the same time for a thousand samples and for ten million. Columns of annotation counts go by the
field's name: a field that a set was indexed without counts zero, so a new field leaves every older index as it is.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy

from fiber.data.records import FIELDS
from fiber.data.remote import check_shard_name
from fiber.errors import ShardError

INDEX_VERSION = 1
FIRST_FIELDS = ("captions", "expressions", "questions", "hypotheses", "statements", "boxes")


@dataclass
class Index:
    """Rows of all samples of a folder, in shard order. N samples, M images, F fields.

    shards: per shard {"name", "samples", "bytes", "sha256"} and "damage" (str) where the tar is cut short.
    record: int64 (N, 2) offset and size of KEY.json, size 0 where it is missing.
    first_image: int64 (N + 1), the images of sample i are rows first_image[i]..first_image[i + 1] of
    images: int64 (M, 2) offset and size, and extension: uint8 (M,) into EXTENSIONS.
    counts: int32 (N, F) annotations by `fields`. keys: uint8 blob of UTF-8 keys, cut by key_end: int64 (N,).
    """

    shards: list[dict[str, Any]]
    record: np.ndarray
    first_image: np.ndarray
    images: np.ndarray
    extension: np.ndarray
    counts: np.ndarray
    keys: np.ndarray
    key_end: np.ndarray
    fields: tuple[str, ...] = FIELDS

    def __len__(self) -> int:
        return len(self.record)

    def key(self, i: int) -> str:
        """The key of sample i."""
        return self.keys[self.key_end[i - 1] if i else 0 : self.key_end[i]].tobytes().decode(errors="replace")

    def head(self, samples: int) -> Index:
        """The first samples alone; the shards stay listed."""
        return replace(
            self,
            record=self.record[:samples],
            first_image=self.first_image[: samples + 1],
            counts=self.counts[:samples],
            key_end=self.key_end[:samples],
        )

    def count(self, field: str) -> np.ndarray:
        """int32 (N,): annotations of a field by sample; zeros for one that the set was indexed without."""
        if field in self.fields:
            return self.counts[:, self.fields.index(field)]
        return np.broadcast_to(np.int32(0), len(self))

    def fingerprint(self) -> str:
        """Changes whenever any shard's bytes, name or position in the order change, and with nothing else."""
        return hashlib.sha256(json.dumps(self.shards).encode()).hexdigest()[:16]

    def first_fingerprint(self) -> str:
        """The fingerprint as checkpoints of version 0.1 have it, which hashed the list of fields of that version,
        too. Goes when none of their runs is continued any more."""
        described = {"version": 1, "fields": FIRST_FIELDS, "shards": self.shards}
        return hashlib.sha256((json.dumps(described, indent=1) + "\n").encode()).hexdigest()[:16]

    @classmethod
    def load(cls, folder: Path) -> Index | None:
        """From index.json and index.npz; None where they are absent, damaged, of another version, or do not fit each
        other. Raises ShardError where a shard's name is no plain file name: names go into paths."""
        try:
            described = json.loads((folder / "index.json").read_text())
            if described["version"] != INDEX_VERSION:
                return None
            shards, fields = described["shards"], tuple(described["fields"])
            index = cls(shards=shards, fields=fields, **mapped(folder / "index.npz"))
            for shard in shards:
                check_shard_name(shard["name"], folder / "index.json")
            return index if index.fits() else None
        except Exception as error:  # absent, cut short, nested too deep, a broken zip, not an index at all
            if isinstance(error, ShardError):
                raise
            return None  # made again

    def fits(self) -> bool:
        """Whether the arrays have integers, and shapes that fit each other and the shards."""
        n, m = len(self.record), len(self.images)
        shapes = {"record": (n, 2), "first_image": (n + 1,), "images": (m, 2), "extension": (m,), "key_end": (n,),
                  "counts": (n, len(self.fields)), "keys": (len(self.keys),)}  # fmt: skip
        arrays = ((getattr(self, name), shape) for name, shape in shapes.items())
        numbers = [shard[key] for shard in self.shards for key in ("samples", "bytes")]
        return (
            all(array.shape == shape and array.dtype.kind in "iu" for array, shape in arrays)
            and all(type(number) is int and number >= 0 for number in numbers)
            and sum(numbers[::2]) == n
            and all(type(shard["sha256"]) is str for shard in self.shards)
        )


def mapped(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed .npz file, mapped where they lie. Raises what broken files make Python raise.

    They are views of one mapping: each mapping keeps a file open, and a process may have 1,024 of them.
    """
    arrays: dict[str, np.ndarray] = {}
    whole = np.memmap(path, np.uint8, "r")
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as stream:
                first = npy.read_magic(stream) == (1, 0)
                read_header = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
                shape, by_column, dtype = read_header(stream)
                header = stream.tell()
            name = member.filename.removesuffix(".npy")
            if member.compress_type != zipfile.ZIP_STORED or dtype.hasobject:
                raise ValueError(f"{path}: {name} cannot be mapped")
            order: Literal["C", "F"] = "F" if by_column else "C"
            start = _data_start(path, member.header_offset)
            arrays[name] = whole[start + header : start + member.file_size].view(dtype).reshape(shape, order=order)
    return arrays


def _data_start(path: Path, header: int) -> int:
    """Where the data of a zip member begins: after its local header (30 bytes), its name and an extra field."""
    with open(path, "rb") as file:
        file.seek(header + 26)
        return header + 30 + sum(struct.unpack("<HH", file.read(4)))
