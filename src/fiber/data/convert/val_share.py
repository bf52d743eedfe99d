"""A validation split out of the training images, by image and seed."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from fiber.data.convert.items import ConversionError, Drop, Made, RawDataset, RawItem


def divide(read: Callable[[], RawDataset], share: float, seed: int) -> dict[str, RawDataset]:
    """{"train", "val"} of the set that `read` reads: `share` of its images (at least one, never all) are val.

    Which ones is a function of (seed, image_id): every image has a random number, and the smallest are val. So a
    picked image stays picked whatever the order of the files, and 8 bytes per image are all that is kept in memory.
    Raises ConversionError.
    """
    if not 0 < share < 1:
        raise ConversionError(f"--val-share {share}: a share between 0 and 1, e.g. 0.2")
    numbers = array("Q", (number(item, seed) for item in read().items if not isinstance(item, Drop)))
    if len(numbers) < 2:
        raise ConversionError(f"--val-share divides two images at least, there are {len(numbers)}")
    count = min(max(round(share * len(numbers)), 1), len(numbers) - 1)
    last = int(np.partition(np.frombuffer(numbers, np.uint64), count - 1)[count - 1])
    parts = {}
    for split, total in (("train", len(numbers) - count), ("val", count)):
        part = read()
        part.items = _those(part.items, split == "val", last, seed)
        part.split, part.total = split, total
        part.provenance = {**part.provenance, "val_share": share, "seed": seed}
        parts[split] = part
    return parts


def number(item: RawItem | Made, seed: int) -> int:
    """A random 64-bit number that belongs to an image."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {item.image_id}".encode(), digest_size=8).digest(), "big")


def _those(
    items: Iterable[RawItem | Made | Drop], val: bool, last: int, seed: int
) -> Iterator[RawItem | Made | Drop]:
    """One side; what the reader itself left out is told once, on the side of training."""
    for item in items:
        if not val if isinstance(item, Drop) else (number(item, seed) <= last) == val:
            yield item
