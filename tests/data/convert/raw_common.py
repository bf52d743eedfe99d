"""What the raw folders are made of: images of every kind and damage, files, and what converting must give."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
TRUNCATED = "truncated"


@dataclass
class Raw:
    """A raw folder, how to convert it, and the result. dropped, noted: reason -> count."""

    dataset: str
    folder: Path
    samples: int
    annotations: dict[str, int]
    options: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)

    def command(self, out: Path, *more: str) -> list[str]:
        """Arguments of tools/make_shards.py."""
        return [self.dataset, "--raw", str(self.folder), "--out", str(out), *self.options, *more]


def write_image(seed: int, kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """Encoded bytes of a random smooth image; kind TRUNCATED: a JPEG cut short."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)
    out = io.BytesIO()
    image.save(out, "JPEG" if kind == TRUNCATED else kind)
    return out.getvalue()[: len(out.getvalue()) * 4 // 5] if kind == TRUNCATED else out.getvalue()


def put(path: Path, content: bytes | str | Any) -> Path:
    """Writes bytes, text, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path
