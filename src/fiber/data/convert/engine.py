"""The engine under all converters: items in, a finished folder of shards out.

The stream of items is cut into pieces of equal length, one piece per shard. A piece depends on nothing but its items,
so pieces are made by any number of processes, in any order, with the same bytes. Each is made in a hidden folder and
renamed when whole (``OUT/.partial/000012``); after a kill, the same command goes on with the pieces that are
missing. At the end the shards move to the output folder, then come the index and, last, ``dataset.json``: a folder
that has one is complete while the source is as it was. Everything left out is in ``drops.jsonl``, one line each.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fiber.data.convert.items import ConversionError, Drop, Made, RawDataset, RawItem
from fiber.data.convert.out_folder import CHANGED, changed, check_sources, clear, described, same
from fiber.data.convert.packing import Packing
from fiber.data.convert.pieces import PARTIAL, Piece, cut, make_item, run_pieces, write_json
from fiber.data.convert.seen import Seen
from fiber.data.convert.source_digest import source_digest
from fiber.data.convert.verdict import Contents, warnings
from fiber.data.index import Index
from fiber.data.indexing import IndexBuilder
from fiber.data.shards import ShardSet

_PROBE = 32  # items whose packed size sets the length of a piece
_EXAMPLES = 5  # of each reason in the summary; all are in drops.jsonl


@dataclass(frozen=True)
class ConversionOptions:
    """What the user can choose. The first group decides the bytes; a resumed run must have the same.

    shard_samples, shard_mb: a shard holds as many items as both allow. against: shard folders (or text files with
    an image id per line) of evaluation sets. drop_leaks: leave their images out instead of only reporting them.
    """

    out: Path
    packing: Packing = field(default_factory=Packing)
    shard_samples: int = 1000
    shard_mb: float = 256.0
    limit: int | None = None
    against: tuple[Path, ...] = ()
    drop_leaks: bool = False

    workers: int = 1
    overwrite: bool = False


def convert(source: RawDataset, job: ConversionOptions) -> dict[str, Any]:
    """Writes the data set and returns the summary (JSON-able).

    Raises ConversionError: nothing could be made, the folder holds something else, a worker died.
    """
    began = time.monotonic()
    check_sources([(source, job.out)])
    job.out.mkdir(parents=True, exist_ok=True)
    plan = _plan(source, job)
    if (done := _finished(job, plan)) is not None:
        return done
    items = itertools.islice(_guarded(source), job.limit)
    head = list(itertools.islice(items, _PROBE))
    known = {category["id"] for category in source.categories} if source.categories else None
    leaks = evaluation_ids(job.against)
    piece = Piece(
        job.out, source.name, job.packing, known, leaks, job.drop_leaks, source.placeholders, _piece_length(head, job)
    )
    partial = _partial_folder(job, {**plan, "piece_length": piece.length})
    total = source.total if job.limit is None else min(source.total or job.limit, job.limit)
    pieces = cut(itertools.chain(head, items), piece.length)
    reports = run_pieces(pieces, piece, partial, total, job.workers)
    summary = _finish(source, job, plan, partial, reports)
    seconds = time.monotonic() - began
    return {**summary, "seconds": round(seconds, 2), "items_per_second": round(summary["items"] / seconds, 1)}


def _guarded(source: RawDataset) -> Iterator[RawItem | Made | Drop]:
    """The items, of one image id the first; an annotation file that is not what it should be becomes one clear
    error."""
    last, seen = "the beginning", Seen()
    try:
        for item in source.items:
            if not isinstance(item, Drop) and not source.repeats and seen.again(item.image_id):
                yield Drop("image id comes again", item.image_id, "list each image once, with all that it has")
                continue
            yield item
            last = item.subject if isinstance(item, Drop) else item.image_id
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        read = source.provenance.get("file") or source.provenance.get("files") or source.name  # one, or several
        files = read if isinstance(read, str) else ", ".join(read)
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ConversionError(
            f"{files}: what follows {last} is not in the format of {source.name}: {what}"
        ) from error


def evaluation_ids(paths: tuple[Path, ...]) -> dict[str, str]:
    """image_id -> name of the evaluation set that has it. A path is a shard folder or a text file of ids."""
    names: dict[str, str] = {}
    for path in paths:
        if path.is_dir():
            shards = ShardSet(path)
            names.update((shards.record(i)["image_id"], shards.name) for i in range(len(shards)))
        elif path.is_file():
            names.update((line.strip(), path.name) for line in path.read_text().splitlines() if line.strip())
        else:
            raise ConversionError(f"{path}: no such evaluation set (a folder of shards or a text file of image ids)")
    return names


def _plan(source: RawDataset, job: ConversionOptions) -> dict[str, Any]:
    """Everything that decides the bytes, and what is known of the files that were read."""
    options = {
        **asdict(job.packing),
        "shard_samples": job.shard_samples,
        "shard_mb": job.shard_mb,
        "limit": job.limit,
        "against": [path.name for path in job.against],
        "drop_leaks": job.drop_leaks,
    }
    plan = {"name": source.name, "split": source.split, "provenance": source.provenance, "options": options}
    digest = source_digest(source)
    return json.loads(json.dumps(plan | ({"source": digest} if digest else {})))  # as it will be read back


def _finished(job: ConversionOptions, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of the same conversion if it is complete already. Raises ConversionError if it is another one."""
    partial = job.out / PARTIAL
    if job.overwrite:
        clear(job.out)
    info = described(job.out)
    if info is None:
        if not partial.exists() and any(job.out.glob("*.tar")):
            raise ConversionError(f"{job.out} holds tars of something else; choose another --out")
        return None
    before = info.get("conversion") or {}
    if not same(before, plan):
        raise ConversionError(
            f"{job.out} already holds {info.get('name')!r} ({info.get('split')}, {info.get('samples')} samples) made "
            "from other files or with other options; choose another --out or pass --overwrite"
        )
    if changed(before, plan):
        raise ConversionError(f"{CHANGED} {job.out} was written; pass --overwrite to make it again")
    shutil.rmtree(partial, ignore_errors=True)
    return {**_summary(info, job), "already_complete": True}


def _partial_folder(job: ConversionOptions, plan: dict[str, Any]) -> Path:
    partial = job.out / PARTIAL
    stored = partial / "plan.json"
    before = json.loads(stored.read_text()) if stored.exists() else plan
    # The first items tell the length of a piece, so another source may have another one.
    length = {"piece_length": plan["piece_length"]}
    if changed(before, plan) and same(before | length, plan):
        print(f"{CHANGED} the conversion to {job.out} broke off: it begins again", file=sys.stderr)
        clear(job.out)
        before = plan
    if not same(before, plan):
        other = [key for key in plan if key != "source" and before.get(key) != plan[key]]
        raise ConversionError(
            f"{partial} belongs to an interrupted conversion with other {', '.join(other)}; "
            "repeat that command to finish it, or pass --overwrite to start again"
        )
    partial.mkdir(exist_ok=True)
    if not stored.exists():
        write_json(stored, plan)
    for stale in partial.glob(".*"):
        shutil.rmtree(stale, ignore_errors=True)
    return partial


def _piece_length(head: list[RawItem | Made | Drop], job: ConversionOptions) -> int:
    """Items per shard, from the packed size of the first ones: a function of the input alone."""
    sizes = []
    for item in head:
        if not isinstance(item, Drop):
            sample, _ = make_item(item, "probe", replace(job.packing, decode_check=False), None)
            sizes.extend([sum(len(data) for _, data in sample.images) + 2048] if sample else [])
    if not sizes:
        return job.shard_samples
    return max(1, min(job.shard_samples, int(job.shard_mb * 1e6 * len(sizes) / sum(sizes))))


def _finish(
    source: RawDataset, job: ConversionOptions, plan: dict[str, Any], partial: Path, folders: list[Path]
) -> dict[str, Any]:
    """Moves the shards to the output folder and writes the index, drops.jsonl and, last, dataset.json."""
    builder = IndexBuilder(job.out)
    reasons: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    items = 0
    examples: dict[str, list[str]] = {}
    contents = Contents()
    aside = partial / "drops.jsonl"
    with open(aside, "w", encoding="utf-8", errors="backslashreplace") as lines:
        for folder in folders:
            report = json.loads((folder / "drops.json").read_text())
            items += report["items"]
            contents.join(Contents(report.get("counts"), report.get("per_class")))
            for reason, subject, detail, kept in report["drops"]:
                (noted if kept else reasons)[reason] += 1
                shown = examples.setdefault(reason, [])
                shown += [f"{subject}: {detail}"] if len(shown) < _EXAMPLES else []
                line = {"reason": reason, "subject": subject, "detail": detail, "kept": kept}
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
            index = Index.load(folder)
            if index is None:
                raise ConversionError(f"{folder}: its index is damaged; remove {partial} and run the command again")
            for number, shard in enumerate(index.shards, len(builder.shards)):
                tar, shard["name"] = folder / shard["name"], f"{source.name}-{number:06d}.tar"
                if tar.exists():
                    os.replace(tar, job.out / shard["name"])
            builder.add(index)
    if not builder.shards:
        shutil.rmtree(partial)
        raise ConversionError(_nothing_made(items, reasons, examples))
    builder.save(job.out)
    os.replace(aside, job.out / "drops.jsonl")
    boxes = contents.described(source.categories or []) if source.categories else {}
    annotations = builder.totals()
    annotations |= {"boxes": contents.counts["boxes"]} if "boxes" in annotations else {}  # not images
    info = {
        "name": source.name,
        "split": source.split,
        "samples": len(builder),
        "annotations": annotations,
        "boxes": boxes,
        "warnings": warnings(
            boxes, source.categories or [], source.provenance.get("class_names") == "prompts", reasons, noted
        ),
        "categories": source.categories or [],
        "answers": source.answers or [],
        "provenance": source.provenance,
        "licence": source.licence,
        "created_by": "fiber shards",
        "items": items,
        "dropped": {reason: {"count": n, "examples": examples[reason]} for reason, n in reasons.most_common()},
        "noted": {reason: {"count": n, "examples": examples[reason]} for reason, n in noted.most_common()},
        "conversion": plan,
    }
    write_json(job.out / "dataset.json", info)
    shutil.rmtree(partial)
    return _summary(info, job)


def _nothing_made(items: int, reasons: Counter, examples: dict[str, list[str]]) -> str:
    if not items:
        return "the annotation files hold nothing for this split"
    reason, count = reasons.most_common(1)[0]
    hint = "; is --raw (or --images) the right folder?" if reason == "missing image" else ""
    return f"none of {items} items could be used: {reason} ({count} times), first {examples[reason][0]}{hint}"


def _summary(info: dict[str, Any], job: ConversionOptions) -> dict[str, Any]:
    keys = ("name", "split", "items", "samples", "annotations", "dropped", "noted")
    shards = sorted(job.out.glob("*.tar"))
    size = sum(path.stat().st_size for path in shards)
    verdict = {key: info[key] for key in ("boxes", "warnings") if info.get(key)}
    return {"out": str(job.out), **{key: info[key] for key in keys}, **verdict, "shards": len(shards), "bytes": size}
