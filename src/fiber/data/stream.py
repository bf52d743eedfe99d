"""The stream: which sample stands at which position of training, and the loaders that read them.

Order is a pure function of (seed, position). Global step s takes positions s*G .. s*G + G - 1; its micro-step a on
rank r takes the contiguous slice that begins at s*G + (a * world + r) * micro. Ranks and workers only split the
stream, so it is the same for any number of either, and the state of a run is the number of its next step.

An epoch walks every annotation once: shards are permuted, then everything within a window of shards is shuffled. The
positions left over at the end of an epoch, fewer than G, are dropped. With weights there are no epochs to keep whole:
every block of positions holds each source in proportion, and each source walks round its own epochs.

A sample that cannot be used is replaced from the order of its own source: attempt k takes the item that stands
k * stride items later in the same epoch, round its end, where stride is the first number above G that shares no
factor with the epoch's length. So the substitute comes from about the next global batch (not from this one, which
would hold it twice), every rank computes it alone, and no rank ever has a batch more or less than another.
"""

from __future__ import annotations

import hashlib
import itertools
import math
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

from fiber.data.records import BY_RULE, Sample, SampleFault, image_hash
from fiber.data.shards import OPEN_FILES, ShardError, ShardSet
from fiber.data.workers import OwnCopies, next_batch, start_worker

MakeSample = Callable[[Sample, str, int, np.random.Generator], dict[str, Any]]
Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]
Per = Literal["annotation", "image"]

MIX_BLOCK = 4096  # positions over which the mixing weights hold exactly (to one part in so many)
ATTEMPTS = 64  # substitutes tried for one position
GRACE = 1000  # samples the fault share is at least taken of, so that one early fault does not stop a run
PREFETCH = 2  # batches a worker is ahead of the training process
UNIFORMS = 4  # per position, for draws outside the loader (hard negatives)

# What a random generator is for: each purpose has its own stream of numbers.
PURPOSES = 8
SHARDS, WINDOW, MIX, CHOICE, SAMPLE, DRAWS = range(6)


class DataFaultError(RuntimeError):
    """More samples are unusable than the run tolerates; names the last shard and key."""


class Fault(NamedTuple):
    """One unusable sample: the shard's path, the key, and the reason in a word."""

    shard: str
    key: str
    reason: str


class Item(NamedTuple):
    """What stands at a position: sources[source].shards[sample], its annotation number `annotation`."""

    source: int
    sample: int
    annotation: int


@dataclass
class Source:
    """A data set in the mix.

    field: one of records.FIELDS. per: "annotation" walks every annotation once an epoch, "image" every picture
    that has one, with one of its annotations at random. weight: share of the mix; all or none have one.
    """

    shards: ShardSet
    field: str = "captions"
    weight: float | None = None
    per: Per = "annotation"


def _generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _remember(cache: dict, key: Any, make: Callable[[], Any], keep: int = 4) -> Any:
    if key not in cache:
        while len(cache) >= keep:
            cache.pop(next(iter(cache)))
        cache[key] = make()
    return cache[key]


class _Walk:
    """Epochs over the items of some sources, shuffled within windows of shards."""

    def __init__(self, sources: list[tuple[int, Source]], seed: int, window_shards: int, stride: int):
        self.sources, self.seed, self.window_shards = dict(sources), seed, window_shards
        self.units: list[tuple[int, int]] = []  # (source, shard)
        sizes: list[int] = []
        for number, source in sources:
            counts = source.shards.counts(source.field)
            counts = np.minimum(counts, 1) if source.per == "image" else counts
            ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])[source.shards.starts]
            self.units += [(number, shard) for shard in range(len(ends) - 1)]
            sizes += np.diff(ends).tolist()
        self.sizes = np.array(sizes, dtype=np.int64)
        self.length = int(self.sizes.sum())
        while self.length and math.gcd(stride, self.length) > 1:
            stride += 1
        self.stride = stride
        self._epochs: dict = {}
        self._windows: dict = {}

    def item(self, epoch: int, offset: int, attempt: int) -> Item:
        """The item at offset 0..length-1 of an epoch, or the substitute number `attempt` for it."""
        offset = (offset + attempt * self.stride) % self.length
        order, starts = _remember(self._epochs, epoch, lambda: self._plan(epoch))
        window = int(np.searchsorted(starts, offset, side="right")) - 1
        units = order[window * self.window_shards : (window + 1) * self.window_shards]
        items = _remember(self._windows, (epoch, window), lambda: self._shuffled(epoch, window, units))
        number, sample, annotation = items[offset - starts[window]].tolist()
        source = self.sources[number]
        if source.per == "image":
            count = int(source.shards.counts(source.field)[sample])
            annotation = int(_generator(self.seed, CHOICE, number, epoch, offset).integers(count))
        return Item(number, sample, annotation)

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the units in an epoch and the offset at which each window starts."""
        order = _generator(self.seed, SHARDS, min(self.sources), epoch).permutation(len(self.units))
        ends = np.cumsum(self.sizes[order])
        return order, np.concatenate([[0], ends[self.window_shards - 1 : -1 : self.window_shards]])

    def _shuffled(self, epoch: int, window: int, units: np.ndarray) -> np.ndarray:
        """int64 (items, 3): source, sample, annotation of one window."""
        rows = [self._unit(*self.units[unit]) for unit in units]
        return _generator(self.seed, WINDOW, min(self.sources), epoch, window).permutation(np.concatenate(rows))

    def _unit(self, number: int, shard: int) -> np.ndarray:
        source = self.sources[number]
        first, last = source.shards.starts[shard : shard + 2]
        return _rows(source.shards.counts(source.field)[first:last], source.per, number, int(first))


def _rows(counts: np.ndarray, per: Per, source: int = 0, first: int = 0) -> np.ndarray:
    """int64 (items, 3): source, sample, annotation, of samples first.. that have `counts` annotations each."""
    counts = np.minimum(counts, 1) if per == "image" else counts
    sample = np.repeat(np.arange(len(counts)), counts)
    annotation = np.arange(len(sample)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([np.full_like(sample, source), sample + first, annotation], axis=1)


class MixedStream:
    """The training order over one or several data sets. Raises ShardError where the sources cannot fill a batch."""

    def __init__(self, sources: list[Source], *, seed: int, global_batch: int, window_shards: int = 8):
        self.sources, self.seed, self.global_batch, self.window_shards = sources, seed, global_batch, window_shards
        if not 0 < window_shards <= OPEN_FILES // 2:
            raise ShardError(f"window_shards {window_shards}: give 1 to {OPEN_FILES // 2}")
        for source in sources:
            if not source.shards.count(source.field):
                raise ShardError(f"{source.shards.path} has no {source.field}")
        numbered = list(enumerate(sources))
        groups = [[pair] for pair in numbered] if self.weighted else [numbered]
        self.walks = [_Walk(group, seed, window_shards, global_batch + 1) for group in groups]
        self.epoch_length = sum(walk.length for walk in self.walks)
        self.steps_per_epoch = self.epoch_length // global_batch
        if self.steps_per_epoch == 0 and not self.weighted:
            raise ShardError(
                f"the training data has {self.epoch_length} samples, less than one batch of {global_batch}"
            )
        self._quotas = _quotas([source.weight for source in sources]) if self.weighted else None
        self._blocks: dict = {}

    @property
    def weighted(self) -> bool:
        """Whether sources mix by weight."""
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            raise ShardError("give a weight to every source or to none")
        return all(given)

    @property
    def dropped(self) -> int:
        """Items left over at the end of an epoch, less than a global batch; 0 with weights."""
        return 0 if self.weighted else self.epoch_length - self.steps_per_epoch * self.global_batch

    @property
    def fingerprint(self) -> str:
        """Changes whenever the order would: with the shards, the sources or the window."""
        parts = [(s.shards.fingerprint, s.field, s.weight, s.per) for s in self.sources]
        return hashlib.sha256(repr((parts, self.window_shards)).encode()).hexdigest()[:16]

    def epoch(self, position: int) -> tuple[int, int]:
        """(epoch, offset within it) of a position; with weights an epoch is only a count of `epoch_length`."""
        length = self.epoch_length if self.weighted else self.steps_per_epoch * self.global_batch
        return divmod(position, length)

    def item(self, position: int, attempt: int = 0) -> Item:
        """What stands at a position; with `attempt` > 0 its substitute of that number (see the rule above)."""
        if not self.weighted:
            return self.walks[0].item(*self.epoch(position), attempt)
        block, offset = divmod(position, MIX_BLOCK)
        source, place = _remember(self._blocks, block, lambda: self._mix(block))
        number = int(source[offset])
        walk = self.walks[number]
        return walk.item(*divmod(block * int(self._quotas[number]) + int(place[offset]), walk.length), attempt)

    def _mix(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each position of a block: its source, and how many earlier positions of the block have that source."""
        source = _generator(self.seed, MIX, block).permutation(np.repeat(np.arange(len(self._quotas)), self._quotas))
        place = np.empty(MIX_BLOCK, dtype=np.int64)
        for number, quota in enumerate(self._quotas):
            place[source == number] = np.arange(quota)
        return source, place

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint stores to go on at `step`, the next one to run."""
        return {
            "step": step,
            "seed": self.seed,
            "global_batch": self.global_batch,
            "fingerprint": self.fingerprint,
        }

    def resume(self, state: dict[str, Any]) -> int:
        """The step to go on at. Raises ShardError where the run's data is not the data of the state."""
        for key, now in self.state(0).items():
            if key != "step" and state[key] != now:
                what = "shards, sources or window" if key == "fingerprint" else key
                raise ShardError(
                    f"cannot resume the data stream: {what} changed ({key} was {state[key]}, is {now}); "
                    "restore it, or start a new run from the weights with init_from"
                )
        return int(state["step"])


def _quotas(weights: list[float]) -> np.ndarray:
    """Whole positions of a block for each source, at least one, by largest remainder."""
    shares = np.array(weights, dtype=np.float64)
    if not (np.isfinite(shares).all() and (shares > 0).all()):
        raise ShardError(f"weights must be positive numbers, got {weights}")
    exact = shares / shares.sum() * MIX_BLOCK
    quotas = np.maximum(np.floor(exact), 1).astype(np.int64)
    while quotas.sum() != MIX_BLOCK:
        step = 1 if quotas.sum() < MIX_BLOCK else -1
        quotas[np.argmax(step * (exact - quotas))] += step
    return quotas


def _fault(source: Source, item: Item, fault: SampleFault) -> tuple[Fault, str]:
    shard, key = source.shards.place(item.sample)
    return Fault(f"{source.shards.path}/{shard}", key, fault.reason), str(fault)


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
        except SampleFault as fault:
            self.faults.append(_fault(source, item, fault))
            return False
        self.samples.append(made)
        self.rows.append((sample.key, position, image_hash(str(sample.record["image_id"]))))
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

    def __init__(self, share: float):
        self.share, self.seen, self.reasons = share, 0, Counter()

    def spend(self, batch: dict[str, Any]) -> None:
        """Turns batch["faults"] into plain Fault tuples. Raises DataFaultError above the share."""
        found = batch["faults"]
        batch["faults"] = [fault for fault, _ in found]
        self.seen += len(batch.get("keys", ())) + len(found)
        self.reasons.update(fault.reason for fault, _ in found)
        total = sum(self.reasons.values())
        damage = sum(n for reason, n in self.reasons.items() if reason not in BY_RULE)
        if "failed" not in batch and (not found or damage <= self.share * max(self.seen, GRACE)):
            return
        (shard, key, reason), detail = found[-1]
        why = f"{ATTEMPTS} in a row" if "failed" in batch else f"more than the tolerated {self.share:.2%}"
        counts = ", ".join(f"{reason} {n}" for reason, n in self.reasons.most_common())
        raise DataFaultError(
            f"{total} of {self.seen} samples could not be used, {why} ({counts}); "
            f"the last: shard {shard}, key {key!r}: {reason}: {detail}"
        )


def _damage(source: Source) -> list[tuple[Fault, str]]:
    """A fault for each shard that was cut short when it was indexed: nobody knows what it has lost."""
    shards = source.shards
    return [(Fault(f"{shards.path}/{name}", "", "damaged_shard"), what) for name, what in shards.damaged()]


def _batches(
    dataset: Dataset, numbers: Any, workers: int, share: float, found: list[tuple[Fault, str]]
) -> Iterator[dict[str, Any]]:
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=partial(start_worker, turns=PREFETCH + 1),
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: the global one belongs to the model
    )
    budget, copies = _FaultBudget(share), OwnCopies()
    batches = iter(loader)
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        batch = copies.copy(batch)
        batch["faults"] = found + batch["faults"]
        budget.spend(batch)
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
    a dict of a list of its results. To that the stream adds: keys list[str]; position, image_id int64 (B,); uniform
    float64 (B, 4), draws in [0, 1) that depend on (seed, position) alone; faults list[Fault] met for this batch;
    data_seconds, the time this process waited for it.
    Raises DataFaultError when more than max_fault_share of the samples read (of at least 1000) are faults, those of
    records.BY_RULE left aside, or where no substitute is any better.
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
    per: Per | Literal["picture"] = "annotation",
    max_fault_share: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """One rank's batches over every annotation once (per="image": the first of every picture; "picture": the same,
    and pictures without one too), in index order.

    Rank r takes items r, r + world, ...; `position` is the item's number in the whole set. Ranks may have different
    numbers of batches and the last may be short: nothing in here is collective. By default one unusable sample raises
    DataFaultError, since figures over fewer samples do not compare; where faults are tolerated they are left out and
    listed in `faults`, and a batch that has lost all its samples comes with no field but the stream's own.
    """
    counts = shards.counts(field)
    if per == "picture":
        counts, per = np.ones_like(counts), "image"
    source = Source(shards, field, per=per)
    rows = _rows(counts, per)
    positions = np.arange(rank, len(rows), world)
    dataset = _EvalBatches(source, rows[rank::world], positions, make_sample, collate, batch)
    return _batches(dataset, range(-(-len(positions) // batch)), workers, max_fault_share, _damage(source))
