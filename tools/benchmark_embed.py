"""`fiber embed` of a folder, beside what bounds it: its images decoded and resized alone, and the forward pass alone
on images that are ready."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import fiber
from benchmark_common import BenchOptions, compare
from fiber.predict.image import CoarsePredictor
from fiber.predict.image_index import build_index
from fiber.predict.listing import ImageList
from fiber.predict.stream import default_workers, in_groups


@dataclass(frozen=True)
class EmbedBenchConfig:
    """`model`: an export, a run or a hub id; `images`: a folder of images that can all be read; `batch` images at a
    time and `workers` threads that decode (0: what the command takes); and the options of a measurement."""

    model: str
    images: str
    batch: int = 0
    workers: int = 0
    bench: BenchOptions = field(default_factory=BenchOptions)


def run(config: EmbedBenchConfig) -> dict:
    """Seconds and processor seconds of all three in turn. `share_of_limit`: the processor seconds of decoding and
    forward pass alone, of those of the whole command: its writing, its threads and its journal are the rest.
    `clock_share_of_limit`: the same by the clock, were both parts spread over all workers."""
    model = fiber.load(config.model)
    if not isinstance(model, CoarsePredictor):
        raise ValueError(f"model: {config.model} is at region level, which has no features to embed")
    model.batch, model.workers = config.batch or model.batch, config.workers or default_workers()
    files = list(ImageList([config.images]))
    batches = [[model.prepare(file) for file in group] for group in in_groups(files, model.batch)]

    def embed() -> None:
        with tempfile.TemporaryDirectory() as folder:
            build_index(model, ImageList([config.images]), Path(folder) / "features.npz")

    def decode() -> None:
        for file in files:
            model.prepare(file)

    def forward() -> None:
        for batch in batches:
            model.features(batch)

    timing = compare({"embed": embed, "decode": decode, "forward": forward}, config.bench)
    for row in timing.values():
        row["images_per_second"] = len(files) / row["seconds"]
    limit = sum(timing[part]["processor_seconds"] for part in ("decode", "forward"))
    clock = sum(timing[part]["seconds"] for part in ("decode", "forward")) / model.workers
    return timing | {
        "images": len(files),
        "batch": model.batch,
        "workers": model.workers,
        "share_of_limit": limit / timing["embed"]["processor_seconds"],
        "clock_share_of_limit": clock / timing["embed"]["seconds"],
    }
