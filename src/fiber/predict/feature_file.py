"""Features of many images or texts in one file.

An ordinary .npz without pickles: features (N,H) fp32, names (N,), stamps (N,3) int64, facts (JSON: of which model).
The arrays lie uncompressed and are mapped, not read: a million images cost little memory. Or a .parquet with the
columns image and features.
"""

import json
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fiber.predict.journal import key_of
from fiber.predict.results import parquet

TIME = (1980, 1, 1, 0, 0, 0)  # of the members of the file: equal runs give equal files


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


def write_texts(out: Path, texts: Sequence[str], features: np.ndarray) -> None:
    """Features (N,H) of texts in the same form as those of images, the texts as names. Raises ValueError, OSError."""
    aside = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        if out.suffix == ".parquet":
            write_parquet(aside, texts, iter([features]))
        else:
            stamps, facts = np.zeros((len(texts), 3), np.int64), {"format": "fiber features", "model": ""}
            write_features(aside, iter([features]), (len(texts), features.shape[1]), texts, stamps, facts)
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)


def write_parquet(file: Path, names: Sequence[str], chunks: Iterator[np.ndarray]) -> None:
    """A .parquet of features, which come in pieces, and the names of their images."""
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


@dataclass(frozen=True)
class KnownFeatures:
    """Rows of an index by the keys of their images (`key_of`)."""

    rows: dict[int, int] = field(default_factory=dict)
    features: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))


def read_known(file: Path, model: str) -> KnownFeatures:
    """What an index file has for the model; nothing where there is none, or it is damaged."""
    if not file.exists():
        return KnownFeatures()
    if not _may_be_index(file):
        raise ValueError(f"{file}: no index of images; name another file, or delete this one")
    try:
        with zipfile.ZipFile(file) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} does not fit its checksum")
        features, names, stamps, facts = read_features(file)
        if facts["model"] != model:
            return KnownFeatures()
        keys = (key_of(name, stamp) for name, stamp in zip(names.tolist(), stamps.tolist(), strict=True))
        return KnownFeatures({key: row for row, key in enumerate(keys)}, features)
    except Exception as error:  # a damaged zip raises a dozen kinds
        print(f"{file}: a damaged index ({error}); it is built again", file=sys.stderr)
        return KnownFeatures()


def read_features(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
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
