"""Look into shards: counts, distributions, damage, and images as the model sees them.

    python tools/inspect_shards.py DIR [--verify] [--contact-sheet OUT.png]

--verify re-reads everything: checksums, every record against the schema, every image decoded by the loader's own
decoder. Exit status: 0 fine, 1 a clear error or damage found. The last line of stdout is a JSON summary.
"""

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fiber.data.records import FIELDS, validate_record
from fiber.data.shards import ShardSet
from fiber.errors import SampleFault, ShardError
from fiber.images.codec import decode
from shard_sheet import contact_sheet
from shard_statistics import histogram, statistics

_EXAMPLES = 5


def verify(shards: ShardSet) -> Counter[str]:
    """Everything wrong with the set: reason -> count. Prints the first examples of each."""
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
    for i in tqdm(range(len(shards)), unit="img", desc="verify", file=sys.stderr):
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


def main(arguments: list[str] | None = None) -> int:
    """Prints the report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="folder of shards")
    parser.add_argument("--verify", action="store_true", help="re-read and decode everything")
    parser.add_argument("--contact-sheet", type=Path, metavar="OUT.png", help="draw samples with their annotations")
    parser.add_argument("--samples", type=int, default=16, help="images on the contact sheet")
    parser.add_argument("--side", type=int, default=320, help="pixels of an image on the contact sheet, at least 320")
    parser.add_argument("--statistics-of", type=int, default=20_000, metavar="N", help="samples the histograms use")
    options = parser.parse_args(arguments)
    try:
        return _inspect(options)
    except (ShardError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # of `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            print(f"error: {error}", file=sys.stderr)
        return 1


def _inspect(options: argparse.Namespace) -> int:
    shards = ShardSet(options.shards)
    if not shards.valid_records(100):
        first = shards.place(0) if len(shards) else "no sample at all"
        print(f"warning: none of the first 100 samples is a fiber record ({first}); tars of images and texts become "
              "shards by tools/make_shards.py pairs", file=sys.stderr)  # fmt: skip
    summary = _describe(shards, options.statistics_of)
    if options.contact_sheet is not None:
        contact_sheet(shards, options.contact_sheet, options.samples, options.side)
        print(f"contact sheet: {options.contact_sheet}")
    if options.verify:
        summary["wrong"] = dict(verify(shards))
        print("verified: " + ("no fault found" if not summary["wrong"] else f"faults {summary['wrong']}"))
    print(json.dumps(summary))
    return int(bool(summary.get("wrong")))


def _describe(shards: ShardSet, limit: int) -> dict[str, Any]:
    info = shards.info
    size = sum(shard["bytes"] for shard in shards.index.shards)
    annotations = {field: shards.count(field) for field in FIELDS if shards.count(field)}
    print(f"{shards.name} {info.get('split', '')}: {len(shards):,} samples in {len(shards.index.shards)} shards, "
          f"{size / 1e6:,.1f} MB, fingerprint {shards.fingerprint}")  # fmt: skip
    for field, count in annotations.items():
        print(f"  {count:>10,} {field}")
    for title, values in (("categories", shards.categories), ("answers", shards.answers)):
        if values:
            print(f"  {len(values):>10,} {title}")
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


if __name__ == "__main__":
    sys.exit(main())
