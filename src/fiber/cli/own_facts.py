"""What the settings of a run on one's own data follow from: the sets, the model to start from, and the machine."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fiber.data.records import annotation_text
from fiber.data.remote import RemoteFolder
from fiber.data.shards import ShardSet
from fiber.errors import ConfigError, SampleFault
from fiber.weights.export_config import ExportConfig, read_config
from fiber.weights.hub import export_folder

LOOKED_AT = 500  # records of a set, evenly spaced, that tell sizes of images, boxes and texts
SPLITS = ("train", "val", "test")


def split_sets(data: str) -> dict[str, str]:
    """Split -> set of what `fiber shards boxes|pairs` wrote to `data`: the folders of SPLITS inside it, or `data`
    itself as "train". Raises ConfigError where there is no set."""
    if RemoteFolder.is_remote(data):
        return {"train": data}
    folder = Path(data)
    if not folder.is_dir():
        raise ConfigError(f"data: no folder {data}")
    found = {split: str(folder / split) for split in SPLITS if any((folder / split).glob("*.tar"))}
    if not found and any(folder.glob("*.tar")):
        found = {"train": data}
    if "train" not in found:
        raise ConfigError(
            f"data: {data} has no shards to train on; `fiber shards boxes FOLDER --out {data}` makes them of images "
            "with boxes, `fiber shards pairs` of images with texts"
        )
    return found


@dataclass(frozen=True)
class SetSizes:
    """A set in numbers. `annotations`: captions, or boxes as the records looked at have them on average. `side`,
    `aspect`: median short side (px) and median long side over it. `smallest`, `object_share`: the class with the
    smallest boxes, and their median size (root of the area) as a share of the image's short side; "" and 1 without
    boxes. `texts`: captions of the records looked at."""

    path: str
    images: int
    annotations: int
    classes: tuple[str, ...]
    side: int
    aspect: float
    smallest: str
    object_share: float
    texts: tuple[str, ...]

    @classmethod
    def of(cls, path: str, field: str) -> SetSizes:
        """Read from the index and LOOKED_AT records. Raises ConfigError for a set without `field`, ShardError."""
        shards = ShardSet(path)
        if not shards.counts(field).any():
            there = [name for name in ("boxes", "captions") if shards.counts(name).any()]
            use = {"boxes": "own_detector", "captions": "own_retrieval, own_caption or own_pretrain"}
            hint = f"; it has {there[0]}: use {use[there[0]]}" if there else ""
            raise ConfigError(f"data: {path} has no {field}{hint}")
        if field == "boxes" and not shards.facts.names:
            raise ConfigError(
                f"data: {path} lists no categories: its dataset.json names the classes of the boxes; "
                "`fiber shards boxes` writes it"
            )
        sides, texts, looked, shares = [], list[str](), 0, defaultdict[int, list[float]](list)
        for record in _records(shards, LOOKED_AT):
            looked += 1
            width, height = record.get("width") or 0, record.get("height") or 0
            if min(width, height) > 0:
                sides.append((min(width, height), max(width, height)))
                for box in _objects(record):
                    x0, y0, x1, y1 = box["box"]
                    area = max(x1 - x0, 0) * max(y1 - y0, 0)
                    shares[box.get("category", 0)].append(area**0.5 / min(width, height))
            texts += [annotation_text(record, "captions", i) for i in range(len(record.get("captions", ())))]
        if not sides:
            raise ConfigError(f"data: no record of {path} can be read (fiber inspect {path} says why)")
        short, long = np.array(sides).T
        boxes = sum(map(len, shares.values()))
        if field == "boxes" and not boxes and not any(map(_objects, _records(shards, len(shards)))):
            raise ConfigError(
                f"data: no image of {path} has a box (crowd regions aside), there is nothing to learn; are "
                "these its labels?"
            )
        enough = min(5, max(map(len, shares.values()), default=0))  # of a few images no class may have five
        sizes = {label: float(np.median(of)) for label, of in shares.items() if len(of) >= enough}
        smallest = min(sizes, key=lambda label: sizes[label]) if field == "boxes" and sizes else None
        return cls(
            path,
            len(shards),
            shards.count(field) if field == "captions" else round(boxes / looked * len(shards)),
            shards.facts.names,
            int(np.median(short)),
            float(np.median(long / short)),
            "" if smallest is None else shards.facts.names[shards.facts.index.get(smallest, 0)],
            1.0 if smallest is None else max(sizes[smallest], 1e-3),
            tuple(texts),
        )


def _objects(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The boxes that training takes: those of single objects."""
    return [box for box in record.get("boxes", ()) if not box.get("crowd")]


def captions_of(path: str, most: int = 100_000) -> Iterator[str]:
    """Captions of at most so many images, evenly spaced."""
    for record in _records(ShardSet(path), most):
        yield from (annotation_text(record, "captions", i) for i in range(len(record.get("captions", ()))))


def _records(shards: ShardSet, most: int) -> Iterator[dict[str, Any]]:
    for i in np.unique(np.linspace(0, len(shards) - 1, most).round().astype(int)).tolist():
        try:
            yield shards.record(i)
        except SampleFault:
            continue


@dataclass(frozen=True)
class Machine:
    """Where the run will be: `ranks` processes, `memory` bytes for each, on cards or not; whether they multiply
    bfloat16 fast."""

    ranks: int
    memory: int
    card: bool = False
    bf16: bool = False

    def __str__(self) -> str:
        what = ("card" if self.card else "process") if self.ranks == 1 else ("cards" if self.card else "processes")
        return f"{self.ranks} {what} of {self.memory / 2**30:.1f} GiB"

    @classmethod
    def here(cls, ranks: int | None = None) -> Machine:
        """This machine: a rank per visible card; without cards, one on the CPU. Half of the main memory counts, and
        nine tenths of a card's."""
        import torch

        from fiber.processor import bfloat16_is_faster

        if torch.cuda.is_available():
            cards = ranks or torch.cuda.device_count()
            least = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
            return cls(cards, int(0.9 * least), True, torch.cuda.is_bf16_supported())
        return cls(ranks or 1, _main_memory() // 2 // (ranks or 1), bf16=bfloat16_is_faster())


def _main_memory() -> int:
    """Bytes that this machine, or the container around this process, has."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(limits)


def start_model(init_from: str | None) -> ExportConfig | None:
    """What the model to start from says of itself; None without one. Raises WeightsError."""
    return None if init_from is None else read_config(export_folder(init_from))
