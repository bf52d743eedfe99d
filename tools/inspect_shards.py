"""Look into shards: counts, distributions, damage, and images as the model sees them.

    python tools/inspect_shards.py DIR [--verify] [--contact-sheet OUT.png]

--verify re-reads everything: checksums, every record against the schema, every image decoded by the loader's own
decoder. Exit status: 0 fine, 1 a clear error or damage found. The last line of stdout is a JSON summary.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fiber.data.records import FIELDS, TEXT_OF, validate_record
from fiber.data.shards import ShardSet
from fiber.errors import SampleFault, ShardError
from fiber.images.codec import decode
from shard_sheet import contact_sheet

_EXAMPLES = 5


def histogram(values: Sequence[float], bins: int = 10, width: int = 40) -> list[str]:
    """Lines "from..to count bar" over equally wide bins, or one line per value where the values are few."""
    numbers = np.asarray(values)
    if len(numbers) == 0:
        return ["  (none)"]
    if len(different := np.unique(numbers)) <= bins:
        rows = [(f"{value:g}", int((numbers == value).sum())) for value in different]
    else:
        counts, edges = np.histogram(numbers, bins)
        rows = [(f"{edges[i]:.0f}..{edges[i + 1]:.0f}", int(count)) for i, count in enumerate(counts)]
    most = max(count for _, count in rows)
    return [f"  {label:>16} {count:>10,} {'#' * -(-width * count // most)}" for label, count in rows]


def statistics(shards: ShardSet, limit: int) -> dict[str, list[float]]:
    """Distributions over the records of up to ``limit`` samples, evenly spread over the set."""
    values: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        values.setdefault(name, []).append(value)

    for i in np.unique(np.linspace(0, len(shards) - 1, min(limit, len(shards))).astype(int)):
        try:
            record = shards.record(int(i))
        except SampleFault:
            continue  # --verify counts those
        add("long side (px)", max(record["width"], record["height"]))
        add("aspect (width / height)", round(record["width"] / record["height"], 1))
        for field in (field for field in FIELDS if field in record):
            add(f"{field} per image", len(record[field]))
        for field, key in TEXT_OF.items():
            for entry in record.get(field, []):
                add(f"words in {field}", len(entry[key].split()))
        for entry in record.get("boxes", []):
            x0, y0, x1, y1 = entry["box"]
            area = (x1 - x0) * (y1 - y0) / (record["width"] * record["height"])
            add("box side (share of the image)", round(float(np.sqrt(area)), 1))
    return values


def verify(shards: ShardSet) -> Counter[str]:
    """Everything wrong with the set: reason -> count. Prints the first examples of each."""
    wrong: Counter[str] = Counter()

    def report(reason: str, detail: str) -> None:
        wrong[reason] += 1
        if wrong[reason] <= _EXAMPLES:
            print(f"  {reason}: {detail}")

    for line in shards.verify():
        report("damaged shard", line)
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
        shards = ShardSet(options.shards)
    except ShardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
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
    for reason, found in info.get("dropped", {}).items():
        print(f"  left out when made: {found['count']:,} {reason}, e.g. {found['examples'][0]}")
    for name, values in statistics(shards, limit).items():
        print(name)
        print("\n".join(histogram(values)))
    return {"name": shards.name, "split": info.get("split"), "samples": len(shards), "bytes": size,
            "shards": len(shards.index.shards), "annotations": annotations,
            "fingerprint": shards.fingerprint}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
