"""Small images of a report, all together below a limit of bytes."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fiber.data.shards import ShardSet
from fiber.errors import SampleFault
from fiber.images.codec import decode_pil

STEPS = ((480, 85), (400, 70), (320, 55), (256, 45), (192, 35), (128, 25), (64, 20))  # long side in px, quality


class Thumbnails:
    """Writes FOLDER/thumbs/N_I.webp: image I of the sample that was asked for as the Nth. What early images leave of
    their part of `budget` (bytes for `count` samples) goes to later ones."""

    def __init__(self, folder: Path, count: int, budget: int) -> None:
        self.folder, self.left, self.budget = folder / "thumbs", max(count, 1), budget
        self.folder.mkdir(parents=True, exist_ok=True)
        self.made: dict[tuple[str, int], list[str]] = {}

    def of(self, shards: ShardSet, number: int) -> list[str]:
        """Paths, from FOLDER, of the images of a sample; "" for one that cannot be shown."""
        key = (str(shards.path), number)
        if key not in self.made:
            share, self.left = self.budget // max(self.left, 1), self.left - 1
            self.made[key] = []
            try:
                images = [data for _, data in shards.read(number).images]
            except (SampleFault, OSError):
                images = [b""]
            for i, data in enumerate(images):
                encoded = _encode(data, share // len(images))
                name = f"thumbs/{len(self.made)}_{i}.webp" if encoded else ""
                if encoded:
                    (self.folder.parent / name).write_bytes(encoded)
                self.made[key].append(name)
                self.budget -= len(encoded)
        return self.made[key]


def _encode(data: bytes, limit: int, steps: Sequence[tuple[int, int]] = STEPS) -> bytes:
    """The image as WebP, at the first of `steps` that keeps the limit, or at the last; nothing if it is damaged."""
    try:
        image = decode_pil(data)
    except (SampleFault, OSError, ValueError):
        return b""
    encoded = b""
    for side, quality in steps:
        small = image.convert("RGB")
        small.thumbnail((side, side), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        small.save(stream, "WEBP", quality=quality)
        encoded = stream.getvalue()
        if len(encoded) <= limit:
            break
    return encoded
