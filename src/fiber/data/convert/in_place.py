"""WebDataset tars of others used as they lie: an index of their images, and the records in a file beside it.

Nothing is written into the tars. OUT gets records.jsonl (a record a line, checked and cleaned as in packed shards),
index.json, index.npz, dataset.json and drops.jsonl, and where OUT is another folder, a link to every tar. index.json
has the key "records" for each tar, the checksum of its records, so that the fingerprint stands for both.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from fiber.countdown import Countdown
from fiber.data.convert.items import ConversionError, Drop, Made, RawDataset, RawItem
from fiber.data.convert.packing import Packing, pack
from fiber.data.convert.pieces import make_key, write_json
from fiber.data.indexing import IndexBuilder, Members, record_counts
from fiber.data.records import EXTENSIONS
from fiber.data.remote import check_shard_name
from fiber.data.shards import RECORDS

_EXAMPLES = 5


def index_tars(source: RawDataset, out: Path, decode_check: bool, overwrite: bool) -> dict[str, Any]:
    """Writes the set and returns its summary, as engine.convert does.

    source: with `tars`. Raises ConversionError; ShardError where a tar's name cannot be a shard's.
    """
    tars = source.tars
    if not tars:
        raise ConversionError("--in-place is for WebDataset tars; other sources are packed")
    names = Counter(path.name for path in tars)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise ConversionError(f"several tars are called {repeated[0]}: index their folders one by one")
    for path in tars:
        check_shard_name(path.name, path.parent)
    out.mkdir(parents=True, exist_ok=True)
    if (out / "dataset.json").exists() and not overwrite:
        raise ConversionError(f"{out} already holds a set; choose another --out or pass --overwrite")
    for path in tars:
        _link(path, out / path.name)
    builder = IndexBuilder(out)
    drops: list[Drop] = []
    aside = out / f".{RECORDS}.{os.getpid()}"
    with open(aside, "wb") as records:
        _index(source, builder, Packing(decode_check), records, drops)
    if not len(builder):
        aside.unlink()
        first = f"{drops[0].reason}, {drops[0].subject}: {drops[0].detail}" if drops else "the tars are empty"
        raise ConversionError(f"none of the samples could be used; first: {first}")
    os.replace(aside, out / RECORDS)
    builder.save(out)
    return _described(source, out, builder.totals(), len(builder), drops)


def _index(source: RawDataset, builder: IndexBuilder, packing: Packing, records: Any, drops: list[Drop]) -> None:
    """All tars, one after the other; one that gives no sample is listed, too."""
    groups = itertools.groupby(_placed(source, drops), lambda item: item.images[0].paths[0])
    waiting = next(groups, None)
    with closing(Countdown(f"indexing {source.name}", source.total, leave=True)) as shown:
        for path in source.tars:
            members: list[Members] = []
            digest = hashlib.sha256()
            if waiting is not None and waiting[0] == str(path):
                for item in waiting[1]:
                    shown.add()
                    if (member := _member(item, len(members), packing, records, digest, drops)) is not None:
                        members.append(member)
                waiting = next(groups, None)
            with open(path, "rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest()
            builder.add_shard(path.name, members, path.stat().st_size, whole)
            builder.shards[-1]["records"] = digest.hexdigest()


def _placed(source: RawDataset, drops: list[Drop]) -> Iterator[RawItem]:
    for item in source.items:
        if isinstance(item, Drop):
            drops.append(item)
        elif not isinstance(item, Made):
            yield item


def _link(tar: Path, place: Path) -> None:
    """A link to the tar, unless the set is made beside it."""
    if place.resolve() == tar.resolve():
        return
    if place.is_symlink():
        place.unlink()
    if place.exists():
        raise ConversionError(f"{place} is another file; choose another --out")
    place.symlink_to(tar.resolve())


def _member(
    item: RawItem, number: int, packing: Packing, records: Any, digest: Any, drops: list[Drop]
) -> Members | None:
    """Where a sample lies; its record is written."""
    key = make_key(number, item.image_id)
    sample, dropped = pack(item, key, packing, None)
    drops += dropped
    if sample is None:
        return None
    line = json.dumps(sample.record, sort_keys=True, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
    place = (records.tell(), len(line))
    records.write(line)
    digest.update(line)
    image, (extension, _) = item.images[0], sample.images[0]
    extent = (image.offset, image.length or 0, EXTENSIONS.index(extension))
    return Members(key, place, [extent], record_counts(sample.record))


def _described(
    source: RawDataset, out: Path, totals: dict[str, int], samples: int, drops: list[Drop]
) -> dict[str, Any]:
    told: dict[bool, dict[str, dict[str, Any]]] = {False: {}, True: {}}
    with open(out / "drops.jsonl", "w", encoding="utf-8", errors="backslashreplace") as lines:
        for drop in drops:
            entry = told[drop.kept].setdefault(drop.reason, {"count": 0, "examples": []})
            entry["count"] += 1
            entry["examples"] += [f"{drop.subject}: {drop.detail}"] if len(entry["examples"]) < _EXAMPLES else []
            lines.write(json.dumps(vars(drop), ensure_ascii=False) + "\n")
    items = samples + sum(entry["count"] for entry in told[False].values())
    info = {"name": source.name, "split": source.split, "samples": samples, "annotations": totals, "categories": [],
            "answers": [], "provenance": {**source.provenance, "in_place": True}, "licence": source.licence,
            "created_by": "fiber shards", "items": items, "dropped": told[False], "noted": told[True]}  # fmt: skip
    write_json(out / "dataset.json", info)
    keys = ("name", "split", "items", "samples", "annotations", "dropped", "noted")
    shards = list(out.glob("*.tar"))
    size = sum(path.stat().st_size for path in shards)
    return {"out": str(out), **{key: info[key] for key in keys}, "shards": len(shards), "bytes": size}
