"""Opening a large set: start-up time and memory of the ranks of one machine, on an index that describes no images."""

import json
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import psutil

from benchmark_common import BenchConfig
from fiber.data.index import Index
from fiber.data.indexing import IndexBuilder
from fiber.data.order import MixedStream, Source
from fiber.data.records import FIELDS
from fiber.data.shards import ShardSet

RANKS = 2
SHARD_SAMPLES = 10_000


def run(config: BenchConfig) -> dict:
    """Of `RANKS` ranks at once, over `bench.index_samples` samples: seconds to open the set and to have the training
    order's first item, with the index on disk alone ("cold") and in memory ("warm"); and by how many bytes the memory
    of a rank grows, memory that ranks share divided among them (proportional set size) and memory of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_index(folder, config.bench.index_samples)
        size = (folder / "index.npz").stat().st_size
        drop_from_memory(folder / "index.npz")
        cold, warm = open_at_once(folder, config), open_at_once(folder, config)
    return {"samples": config.bench.index_samples, "index_bytes": size, "ranks": RANKS, "cold": cold, "warm": warm}


def write_index(folder: Path, samples: int) -> None:
    """An index of `samples` samples of one image and one caption, in empty tars: opening reads no tar."""
    counts = np.zeros((samples, len(FIELDS)), dtype=np.int32)
    counts[:, FIELDS.index("captions")] = 1
    shards = []
    for number, first in enumerate(range(0, samples, SHARD_SAMPLES)):
        shard = {"name": f"bench-{number:06d}.tar", "samples": min(SHARD_SAMPLES, samples - first)}
        shards.append(shard | {"bytes": shard["samples"] * 65536, "sha256": f"{number:064x}"})
        (folder / shard["name"]).touch()
    offsets = np.arange(samples, dtype=np.int64) % SHARD_SAMPLES * 65536
    key = np.frombuffer("".join(f"{i:09d}" for i in range(samples)).encode(), dtype=np.uint8)
    builder = IndexBuilder(folder)
    rows = Index(
        shards=shards,
        record=np.stack([offsets, np.full_like(offsets, 300)], axis=1),
        first_image=np.arange(samples + 1, dtype=np.int64),
        images=np.stack([offsets + 1024, np.full_like(offsets, 60_000)], axis=1),
        extension=np.zeros(samples, dtype=np.uint8),
        counts=counts,
        keys=key,
        key_end=np.arange(1, samples + 1, dtype=np.int64) * 9,
    )
    builder.add(rows)
    builder.save(folder)
    (folder / "dataset.json").write_text(json.dumps({"name": "bench", "split": "train"}))


def drop_from_memory(path: Path) -> None:
    """Takes one file out of the system's page cache, and nothing else."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def open_at_once(folder: Path, config: BenchConfig) -> dict:
    """Of the slowest and of the largest rank."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(RANKS)
    ends = [context.Pipe(duplex=False) for _ in range(RANKS)]
    ranks = [context.Process(target=_rank, args=(folder, config.seed, barrier, sender)) for _, sender in ends]
    for rank in ranks:
        rank.start()
    measured = []
    for (receiver, sender), rank in zip(ends, ranks, strict=True):
        sender.close()
        measured.append(receiver.recv())
        rank.join()
    return {name: max(one[name] for one in measured) for name in measured[0]}


def _rank(folder: Path, seed: int, barrier: Barrier, sender: Connection) -> None:
    process = psutil.Process()
    before = process.memory_full_info()
    barrier.wait()
    start = time.perf_counter()
    shards = ShardSet(folder)
    opened = time.perf_counter() - start
    stream = MixedStream([Source(shards, "captions")], seed=seed, global_batch=1024)
    stream.item(0)
    first_item = time.perf_counter() - start
    barrier.wait()  # memory is looked at while all ranks have the set
    after = process.memory_full_info()
    barrier.wait()
    grown = {"proportional_bytes": after.pss - before.pss, "own_bytes": after.uss - before.uss}
    sender.send({"open_seconds": opened, "first_item_seconds": first_item} | grown)
