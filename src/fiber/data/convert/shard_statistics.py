"""Distributions over the records of a shard set, for `fiber inspect`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fiber.data.records import FIELDS, TEXT_OF, validate_record
from fiber.data.shards import ShardSet
from fiber.errors import SampleFault


def histogram(values: Sequence[float], bins: int = 10, width: int = 40) -> list[str]:
    """Lines "from..to count bar" over equally wide bins, or one line per value where the values are few."""
    numbers = np.asarray(values)
    if len(numbers) == 0:
        return ["  (none)"]
    if len(different := np.unique(numbers)) <= bins:
        rows = [(f"{value:g}", int((numbers == value).sum())) for value in different]
    else:
        counts, edges = np.histogram(numbers, bins)
        rows = [(f"{edges[i]:.3g}..{edges[i + 1]:.3g}", int(count)) for i, count in enumerate(counts)]
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
            validate_record(record)
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
