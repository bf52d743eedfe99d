"""`fiber inspect`: what is in shards, whether it is whole, and how it looks."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiber.cli.numbers import whole_number

if TYPE_CHECKING:
    from fiber.data.shards import ShardSet

DESCRIPTION = """Look into shards: counts, distributions, damage, and images as the model sees them:

    fiber inspect data/mine/train --verify --contact-sheet sheet.png

--verify re-reads everything: checksums, every record against the schema, every image decoded by the loader's own
decoder. Exit status: 0 fine, 1 a clear error or damage found. The last line of stdout is a JSON summary.
"""
_EXAMPLES = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("shards", type=Path, help="folder of shards")
    parser.add_argument("--verify", action="store_true", help="re-read and decode everything")
    parser.add_argument("--contact-sheet", type=Path, metavar="OUT.png", help="draw samples with their annotations")
    parser.add_argument("--samples", type=whole_number(1), default=16, help="images on the contact sheet")
    parser.add_argument(
        "--side",
        type=whole_number(320, 1600),
        default=320,
        help="pixels of an image on the contact sheet, 320 to 1600",
    )
    parser.add_argument(
        "--statistics-of", type=whole_number(0), default=20_000, metavar="N", help="samples the histograms use"
    )


def run(options: argparse.Namespace) -> int:
    """Prints the report; -> exit status."""
    try:
        return _inspect(options)
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def verify(shards: ShardSet) -> Counter[str]:
    """Everything wrong with the set: reason -> count. Prints the first examples of each."""
    from fiber.countdown import Countdown
    from fiber.data.records import validate_record
    from fiber.errors import SampleFault
    from fiber.images.codec import decode

    wrong: Counter[str] = Counter()

    def report(reason: str, detail: str) -> None:
        wrong[reason] += 1
        if wrong[reason] <= _EXAMPLES:
            print(f"  {reason}: {detail}")

    try:
        for line in shards.verify():
            report("damaged shard", line)
    except OSError as error:
        report("unreadable shard", str(error))
    known = {category["id"] for category in shards.categories} or None
    for i in Countdown("checking", len(shards), leave=True).over(range(len(shards))):
        where = "{} {}".format(*shards.place(i))
        try:
            sample = shards.read(i)
            validate_record(sample.record, known)
            sizes = sample.record.get("images", [sample.record])
            for (_, data), size in zip(sample.images, sizes, strict=True):
                height, width = decode(data).shape[:2]
                if (width, height) != (size["width"], size["height"]):
                    raise SampleFault("wrong_size", f"{width}x{height}, the record says {size}")
        except SampleFault as fault:
            report(fault.reason, f"{where}: {fault}")
        except ValueError as error:
            report("wrong_number_of_images", f"{where}: {error}")
        except MemoryError:
            report("huge_image", where)
    return wrong


def _inspect(options: argparse.Namespace) -> int:
    from fiber.data.convert.shard_sheet import contact_sheet
    from fiber.data.shards import ShardSet

    shards = ShardSet(options.shards)
    if not shards.valid_records(100):
        first = shards.place(0) if len(shards) else "no sample at all"
        print(f"warning: none of the first 100 samples is a fiber record ({first}); tars of images and texts become "
              "shards by `fiber shards pairs`", file=sys.stderr)  # fmt: skip
    summary = _describe(shards, options.statistics_of)
    if options.verify:  # first: the verdict is there whatever becomes of the sheet
        summary["wrong"] = dict(verify(shards))
        print("verified: " + ("no fault found" if not summary["wrong"] else f"faults {summary['wrong']}"))
    if options.contact_sheet is not None:
        contact_sheet(shards, options.contact_sheet, options.samples, options.side)
        print(f"contact sheet: {options.contact_sheet}")
    print(json.dumps(summary))
    return int(bool(summary.get("wrong")))


def _counts(shards: ShardSet) -> dict[str, int]:
    """Annotations by field. The index counts images that have boxes, so boxes themselves come from dataset.json, and
    where that does not have them, from the records."""
    from fiber.data.records import FIELDS

    counts = {field: shards.count(field) for field in FIELDS if shards.count(field)}
    described = shards.info.get("boxes")
    if isinstance(described, dict) and isinstance(described.get("boxes"), int):
        counts["boxes"] = described["boxes"]
    elif "boxes" in counts:
        counts["boxes"] = sum(_boxes(shards, i) for i in shards.counts("boxes").nonzero()[0].tolist())
    return counts


def _boxes(shards: ShardSet, i: int) -> int:
    """Boxes of a sample, 0 of one that is damaged: the index counts those too, and --verify says so."""
    from fiber.errors import SampleFault

    try:
        return len(shards.record(i)["boxes"])
    except (SampleFault, KeyError, TypeError):
        return 0


def _describe(shards: ShardSet, limit: int) -> dict[str, Any]:
    from fiber.data.convert.shard_statistics import histogram, statistics

    info = shards.info
    size = sum(shard["bytes"] for shard in shards.index.shards)
    annotations = _counts(shards)
    print(f"{shards.name} {info.get('split', '')}: {len(shards):,} samples in {len(shards.index.shards)} shards, "
          f"{size / 1e6:,.1f} MB, fingerprint {shards.fingerprint}")  # fmt: skip
    for field, count in annotations.items():
        print(f"  {count:>10,} {field}")
    for title, entries in (("categories", shards.categories), ("answers", shards.answers)):
        if entries:
            print(f"  {len(entries):>10,} {title}")
    for key in ("licence", "provenance"):
        if key in info:
            print(f"  {key}: {info[key]}")
    if info.get("boxes"):
        print(f"  boxes: {info['boxes']}"[:300])
    for reason, found in (info.get("dropped") or {}).items() if isinstance(info.get("dropped"), dict) else ():
        print(f"  left out when made: {reason}: {found}"[:300])
    for name, values in statistics(shards, limit).items():
        print(name)
        print("\n".join(histogram(values)))
    return {"name": shards.name, "split": info.get("split"), "samples": len(shards), "bytes": size,
            "shards": len(shards.index.shards), "annotations": annotations,
            "fingerprint": shards.fingerprint}  # fmt: skip
