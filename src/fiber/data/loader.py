"""Loaders: the batches of a rank, read in the order of `data.order` or, for evaluation, of the index."""

from __future__ import annotations

import itertools
import mmap
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fiber.data.order import DRAWS, PURPOSES, SAMPLE, Item, MixedStream, Per, Source, _rows
from fiber.data.records import BY_RULE, Sample, broken, image_hash
from fiber.data.shards import ShardSet
from fiber.data.workers import OwnCopies, begin, next_batch, start_worker
from fiber.errors import DataFaultError, SampleFault, ShardError, without_secrets

MakeSample = Callable[[Sample, str, int, np.random.Generator], dict[str, Any]]
Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]
ATTEMPTS = 64  # substitutes tried for one position
GRACE = 1000  # samples the fault share is at least taken of, so that one early fault does not stop a run
PREFETCH = 2  # batches that a worker is ahead of the training process
UNIFORMS = 2  # per position, for draws outside the loader: one per negative of matching


class Fault(NamedTuple):
    """One unusable sample: the shard's path (of a URL no secrets), the key, and the reason in a word."""

    shard: str
    key: str
    reason: str


def _fault(source: Source, item: Item, fault: SampleFault) -> tuple[Fault, str]:
    shard, key = source.shards.place(item.sample)
    return Fault(f"{source.shards.where}/{shard}", key, fault.reason), str(fault)


class _Draws:
    """The counter-based generator of samples: any position's numbers without those of the positions before."""

    def __init__(self, seed: int):
        self.generator = np.random.Generator(np.random.Philox(key=0))
        self.start = self.generator.bit_generator.state
        self.seed = seed

    def at(self, purpose: int, position: int) -> np.random.Generator:
        """The generator, set to the first number of a position. There is one; it serves one position at a time."""
        self.start["state"]["key"] = np.array([self.seed, position * PURPOSES + purpose], dtype=np.uint64)
        self.generator.bit_generator.state = self.start
        return self.generator


class _Batch:
    """Collects the samples of a micro-batch and what the stream says about each."""

    def __init__(self, seed: int, make_sample: MakeSample):
        self.draws, self.make_sample = _Draws(seed), make_sample
        self.samples: list[dict[str, Any]] = []
        self.rows: list[tuple[str, int, int]] = []  # key, position, hash of the image_id
        self.faults: list[tuple[Fault, str]] = []

    def read(self, source: Source, item: Item) -> Sample | None:
        """The encoded sample, or None and a fault."""
        try:
            return source.shards.read(item.sample)
        except SampleFault as fault:
            self.faults.append(_fault(source, item, fault))
            return None

    def add(self, source: Source, item: Item, sample: Sample | None, position: int) -> bool:
        """Makes a sample of what `read` gave; False, and a fault if there is not one yet, where it cannot be used."""
        if sample is None:
            return False
        try:
            made = self.make_sample(sample, source.field, item.annotation, self.draws.at(SAMPLE, position))
            row = (sample.key, position, image_hash(str(sample.record["image_id"])))
        except Exception as error:
            fault = error if isinstance(error, SampleFault) else broken(sample.record)
            if fault is None:
                raise  # a bug: the record keeps to the schema
            self.faults.append(_fault(source, item, fault))
            return False
        self.samples.append(made)
        self.rows.append(row)
        return True

    def finish(self, collate: Collate) -> dict[str, Any]:
        next_batch()
        batch = collate(self.samples) if self.samples else {}
        uniform = [self.draws.at(DRAWS, position).random(UNIFORMS) for _, position, _ in self.rows]
        batch["keys"] = [row[0] for row in self.rows]
        batch["position"] = torch.tensor([row[1] for row in self.rows], dtype=torch.int64)
        batch["image_id"] = torch.tensor([row[2] for row in self.rows], dtype=torch.int64)
        batch["uniform"] = torch.from_numpy(np.array(uniform).reshape(-1, UNIFORMS))
        batch["faults"] = self.faults
        return batch


@dataclass
class _TrainBatches(Dataset):
    """Micro-batch number n (n = step * accumulation + micro-step) of one rank."""

    stream: MixedStream
    make_sample: MakeSample
    collate: Collate
    micro_batch: int
    accumulation: int
    rank: int
    world: int

    def __getitem__(self, number: int) -> dict[str, Any]:
        step, part = divmod(number, self.accumulation)
        first = step * self.stream.global_batch + (part * self.world + self.rank) * self.micro_batch
        batch = _Batch(self.stream.seed, self.make_sample)
        # All are read before the first is decoded: in turns, each would push the other's code out of the cache.
        drawn = [self._read(batch, position, 0) for position in range(first, first + self.micro_batch)]
        for position, found in enumerate(drawn, first):
            attempt = 0
            while not batch.add(*found, position):
                attempt += 1
                if attempt == ATTEMPTS:
                    return {"faults": batch.faults, "failed": position}
                found = self._read(batch, position, attempt)
        return batch.finish(self.collate)

    def _read(self, batch: _Batch, position: int, attempt: int) -> tuple[Source, Item, Sample | None]:
        item = self.stream.item(position, attempt)
        source = self.stream.sources[item.source]
        return source, item, batch.read(source, item)


@dataclass
class _EvalBatches(Dataset):
    """Batch number n of one rank: annotations rank, rank + world, ... in index order."""

    source: Source
    rows: np.ndarray  # (items, 3) of this rank
    positions: np.ndarray
    make_sample: MakeSample
    collate: Collate
    batch: int

    def __getitem__(self, number: int) -> dict[str, Any]:
        batch = _Batch(0, self.make_sample)
        for i in range(number * self.batch, min((number + 1) * self.batch, len(self.rows))):
            item = Item(*self.rows[i].tolist())
            batch.add(self.source, item, batch.read(self.source, item), int(self.positions[i]))
        return batch.finish(self.collate)


class _FaultBudget:
    """Counts faults as the consumer meets them and stops the run above a share."""

    def __init__(self, share: float, remedy: str):
        self.share, self.remedy, self.seen = share, remedy, 0
        self.reasons: Counter[str] = Counter()

    def spend(self, batch: dict[str, Any]) -> None:
        """Turns batch["faults"] into plain Fault tuples. Raises DataFaultError above the share."""
        found = batch["faults"]
        batch["faults"] = [fault for fault, _ in found]
        self.seen += len(batch.get("keys", ())) + len(found)
        self.reasons.update(fault.reason for fault, _ in found)
        damage = sum(n for reason, n in self.reasons.items() if reason not in BY_RULE)
        if "failed" not in batch and (not found or damage <= self.share * max(self.seen, GRACE)):
            return
        (shard, key, reason), detail = found[-1]
        why = f"more than the tolerated {self.share:.2%}" if self.share else "and all are needed"
        why = f"{ATTEMPTS} in a row" if "failed" in batch else why
        counts = ", ".join(f"{reason} {n}" for reason, n in self.reasons.most_common())
        raise DataFaultError(
            f"{self.reasons.total()} of {self.seen} samples could not be used, {why} ({counts}); "
            f"the last: shard {shard}, key {key!r}: {reason}: {detail:.500}{self.remedy}"
        )


def _damage(source: Source) -> list[tuple[Fault, str]]:
    """A fault for each shard that was cut short when it was indexed: nobody knows what it has lost."""
    shards = source.shards
    return [(Fault(f"{shards.where}/{name}", "", "damaged_shard"), what) for name, what in shards.damaged()]


def _batches(
    dataset: Dataset, numbers: Any, workers: int, share: float, found: list[tuple[Fault, str]], remedy: str = ""
) -> Iterator[dict[str, Any]]:
    forked = workers > 0 and sys.platform == "linux"
    begun = mmap.mmap(-1, workers) if forked else bytearray()
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=partial(start_worker, turns=PREFETCH + 1, begun=begun),
        multiprocessing_context="fork" if forked else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: the global one belongs to the model
    )
    budget, copies = _FaultBudget(share, remedy), OwnCopies()
    batches = begin(loader, begun)
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        batch = copies.copy(batch)
        batch["faults"] = found + batch["faults"]
        budget.spend(batch)
        # Parts of usable samples: counted, but no reason to stop.
        batch["faults"] += [f._replace(shard=without_secrets(f.shard)) for f in batch.pop("dropped", [])]
        batch["data_seconds"] = time.perf_counter() - start
        found = []
        yield batch


class _Numbers:
    """start, start + 1, ... without end (a sampler: iterated once by the main process)."""

    def __init__(self, start: int):
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


def make_loader(
    stream: MixedStream,
    make_sample: MakeSample,
    collate: Collate,
    *,
    micro_batch: int,
    accumulation: int = 1,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    start_step: int = 0,
    max_fault_share: float = 0.01,
) -> Iterator[dict[str, Any]]:
    """One rank's micro-batches from global step `start_step` on, without end.

    make_sample(sample, field, annotation, rng) decodes and transforms one sample, all chance taken from rng, which
    depends on (seed, position) alone and is good for this call only; it raises SampleFault on bad data. collate makes
    a dict of a list of its results; its key "dropped", faults of parts of samples, is added to the batch's faults. To
    that the stream adds: keys list[str]; position, image_id int64 (B,); uniform float64 (B,2), draws in [0, 1) that
    depend on (seed, position) alone; faults list[Fault] met for this batch; data_seconds, the time this process
    waited for it. Raises DataFaultError when more than max_fault_share of the samples read (of at least 1000) are
    faults, those of records.BY_RULE left aside, or where no substitute is any better.
    """
    if micro_batch * accumulation * world != stream.global_batch:
        raise ShardError(
            f"micro_batch {micro_batch} x accumulation {accumulation} x ranks {world} "
            f"is not the global batch of {stream.global_batch}"
        )
    dataset = _TrainBatches(stream, make_sample, collate, micro_batch, accumulation, rank, world)
    damage = [fault for source in stream.sources for fault in _damage(source)] if rank == 0 else []
    return _batches(dataset, _Numbers(start_step * accumulation), workers, max_fault_share, damage)


def eval_loader(
    shards: ShardSet,
    field: str,
    make_sample: MakeSample,
    collate: Collate,
    *,
    batch: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    per: Per | Literal["every_image"] = "annotation",
    max_fault_share: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """One rank's batches over every annotation once (per="image": the first of every image; "every_image": the same,
    and images without one too), in index order.

    Rank r takes items r, r + world, ...; `position` is the item's number in the whole set. Ranks may have different
    numbers of batches and the last may be short: nothing in here is collective. By default one unusable sample raises
    DataFaultError, since figures over fewer samples do not compare; where faults are tolerated they are left out and
    listed in `faults`, and a batch that has lost all its samples comes with no field but the stream's own.
    """
    counts = shards.counts(field)
    if per == "every_image":
        counts, per = np.ones_like(counts), "image"
    source = Source(shards, field, per=per)
    rows = _rows(counts, per)
    positions = np.arange(rank, len(rows), world)
    dataset = _EvalBatches(source, rows[rank::world], positions, make_sample, collate, batch)
    remedy = f"; pack {shards.where} again, or leave it out of eval.data (eval.data=[]: no evaluation)"
    return _batches(dataset, range(-(-len(positions) // batch)), workers, max_fault_share, _damage(source), remedy)
