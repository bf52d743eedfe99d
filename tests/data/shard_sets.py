"""Writes the small shard sets of the data tests."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import simplejpeg

from fiber.data.convert.writer import ShardWriter
from fiber.data.records import Sample

CAPTIONS = (1, 2, 3, 2, 1, 3, 2, 1, 3, 2)  # of the images of a shard of ten: twenty in all


def jpeg(shade: int, width: int = 30, height: int = 20) -> bytes:
    """A plain image whose grey level says which one it is."""
    return simplejpeg.encode_jpeg(np.full((height, width, 3), shade, dtype=np.uint8), quality=95)


def make_sample(number: int, captions: int = 1, name: str = "s") -> Sample:
    record = {
        "image_id": f"{name}_{number}",
        "width": 30,
        "height": 20,
        "source": "test",
        "captions": [{"text": f"{name} image {number} caption {i}"} for i in range(captions)],
    }
    return Sample(f"{name}{number:04d}", [("jpg", jpeg(number % 250))], record)


def write_shards(folder: Path, sizes: Iterable[int], captions: Callable[[int], int], name: str = "s") -> None:
    """One shard of each size, through one writer per shard and an index made from the tars."""
    number = 0
    for shard, size in enumerate(sizes):
        with ShardWriter(folder, f"{name}{shard}") as writer:
            for _ in range(size):
                writer.add(make_sample(number, captions(number), name))
                number += 1
    for path in folder.glob("index.*"):
        path.unlink()
    (folder / "dataset.json").write_text('{"name": "test"}')
