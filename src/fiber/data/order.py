"""The stream: which sample stands at which position of training, and the loaders that read them.

Order is a pure function of (seed, position). Global step s takes positions s*G .. s*G + G - 1; its micro-step a on
rank r takes the contiguous slice that begins at s*G + (a * world + r) * micro. Ranks and workers only split the
stream, so it is the same for any number of either, and the state of a run is the number of its next step.

An epoch walks every annotation once: shards are permuted, then everything within a window of shards is shuffled. The
positions left over at the end of an epoch, fewer than G, are dropped. With weights there are no epochs to keep whole:
every block of positions holds each source in proportion, and each source walks round its own epochs, or, class-aware,
round its classes.

A sample that cannot be used is replaced from the order of its own source: attempt k takes the item that stands
k * stride items later in the same epoch, round its end, where stride is the first number above G that shares no
factor with the epoch's length. So the substitute comes from about the next global batch (not from this one, which
would hold it twice), every rank computes it alone, and no rank ever has a batch more or less than another.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.random import default_rng

from fiber.data.shards import OPEN_FILES, ShardSet
from fiber.errors import SampleFault, ShardError

Per = Literal["annotation", "image"]
Sampling = Literal["each", "with_boxes", "class_aware"]

MIX_BLOCK = 4096  # positions over which the mixing weights hold exactly (to one part in so many)

# What a random generator is for: each purpose has its own stream of numbers.
PURPOSES = 8
SHARDS, WINDOW, MIX, CHOICE, SAMPLE, DRAWS, CLASSES, CLASS_IMAGES = range(PURPOSES)


class Item(NamedTuple):
    """What stands at a position: sources[source].shards[sample], its annotation number `annotation`."""

    source: int
    sample: int
    annotation: int


@dataclass
class Source:
    """A data set in the mix.

    field: one of records.FIELDS. per: "annotation" walks every annotation once per epoch, "image" every image
    that has one, with one of its annotations at random. weight: share of the mix; all or none have one. sampling,
    of field "boxes": "with_boxes" leaves out images without a box of more than one pixel a side, crowds included, as
    the release's detection sets do in training; with a weight, "class_aware" (see `_ClassWalk`).
    """

    shards: ShardSet
    field: str = "captions"
    weight: float | None = None
    per: Per = "annotation"
    sampling: Sampling = "each"

    def __post_init__(self) -> None:
        self.counts = self.shards.counts(self.field)  # annotations to walk of each sample
        if self.sampling == "with_boxes":
            self.counts = self.counts * [self._has_box(sample) for sample in range(len(self.counts))]

    def _has_box(self, sample: int) -> bool:
        try:
            boxes = [box["box"] for box in self.shards.record(sample).get("boxes", ())]
            return any(x1 - x0 > 1 and y1 - y0 > 1 for x0, y0, x1, y1 in boxes)
        except (SampleFault, KeyError, TypeError, ValueError):
            return True  # damaged: training counts it when it meets it


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
            counts = source.counts
            # Shard by shard: nothing as long as the set is made on every rank.
            for shard, (first, last) in enumerate(itertools.pairwise(source.shards.starts.tolist())):
                part = counts[first:last]
                self.units.append((number, shard))
                sizes.append(int(np.count_nonzero(part) if source.per == "image" else part.sum(dtype=np.int64)))
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
            count = int(source.counts[sample])
            annotation = int(default_rng((self.seed, CHOICE, number, epoch, offset)).integers(count))
        return Item(number, sample, annotation)

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the units in an epoch and the offset at which each window starts."""
        order = default_rng((self.seed, SHARDS, min(self.sources), epoch)).permutation(len(self.units))
        ends = np.cumsum(self.sizes[order])
        return order, np.concatenate([[0], ends[self.window_shards - 1 : -1 : self.window_shards]])

    def _shuffled(self, epoch: int, window: int, units: np.ndarray) -> np.ndarray:
        """int64 (items, 3): source, sample, annotation of one window."""
        rows = [self._unit(*self.units[unit]) for unit in units]
        return default_rng((self.seed, WINDOW, min(self.sources), epoch, window)).permutation(np.concatenate(rows))

    def _unit(self, number: int, shard: int) -> np.ndarray:
        source = self.sources[number]
        first, last = source.shards.starts[shard : shard + 2]
        return _rows(source.counts[first:last], source.per, number, int(first))


class _ClassWalk:
    """Classes in turn, in a new order each round, and of each its images in turn, in a new order when all had theirs.

    So every class that has an image stands at as many positions as any other, however rare. Any position is found
    without those before it; memory is one number per class of an image. Images may come from any shard.
    """

    def __init__(self, number: int, source: Source, seed: int, stride: int):
        self.number, self.seed, self.stride = number, seed, stride
        index, labels, samples = source.shards.facts.index, array("i"), array("i")
        for sample in np.flatnonzero(source.counts).tolist():
            try:
                boxes = source.shards.record(sample)["boxes"]
                present = {index[b["category"]] for b in boxes if not b.get("crowd") and b["category"] in index}
            except (SampleFault, AttributeError, KeyError, TypeError):
                continue  # damaged: no position has it
            labels.extend(sorted(present))
            samples.extend([sample] * len(present))
        if not samples:
            raise ShardError(f"{source.shards.where}: no boxes with classes to sample by (sampling: class_aware)")
        self.samples = np.array(samples)[np.argsort(labels, kind="stable")]
        self.counts = np.unique(labels, return_counts=True)[1]
        self.starts = np.cumsum(self.counts) - self.counts
        self.length = len(self.samples)
        self._rounds: dict = {}

    def item(self, epoch: int, offset: int, attempt: int) -> Item:
        """As `_Walk.item`; the epoch only counts on."""
        classes = len(self.counts)
        turn, place = divmod(epoch * self.length + offset + attempt * self.stride, classes)
        drawn = default_rng((self.seed, CLASSES, self.number, turn))
        label = int(_remember(self._rounds, turn, lambda: drawn.permutation(classes))[place])
        count = int(self.counts[label])
        again, visit = divmod(turn, count)
        draw = default_rng((self.seed, CLASS_IMAGES, self.number, label, again))
        first, step = draw.integers(count), int(draw.integers(1, count + 1))
        while math.gcd(step, count) > 1:  # a step that comes by every image
            step += 1
        return Item(self.number, int(self.samples[self.starts[label] + (first + visit * step) % count]), 0)


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
            if not source.counts.any():
                raise ShardError(f"{source.shards.where} has no {source.field}")
        numbered = list(enumerate(sources))
        groups = [[pair] for pair in numbered] if self.weighted else [numbered]
        self.walks: list[_Walk | _ClassWalk] = [
            _ClassWalk(*group[0], seed, global_batch + 1)
            if group[0][1].sampling == "class_aware" and self.weighted
            else _Walk(group, seed, window_shards, global_batch + 1)
            for group in groups
        ]
        self.epoch_length = sum(walk.length for walk in self.walks)
        self.steps_per_epoch = self.epoch_length // global_batch
        if self.steps_per_epoch == 0 and not self.weighted:
            few = f"the training data has {self.epoch_length} samples, less than one batch of {global_batch}"
            raise ShardError(f"{few}: lower train.global_batch (and train.micro_batch)")
        self._quotas = _quotas([source.weight or 0.0 for source in sources]) if self.weighted else np.zeros(0, int)
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
        return self._hash([s.shards.fingerprint for s in self.sources])

    def _hash(self, sets: list[str]) -> str:
        parts = [
            (name, s.field, s.weight, s.per)
            + ((s.sampling,) if s.sampling != "each" else ())  # as older runs have it
            for name, s in zip(sets, self.sources, strict=True)
        ]
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
        source, earlier = _remember(self._blocks, block, lambda: self._mix(block))
        number = int(source[offset])
        walk = self.walks[number]
        return walk.item(*divmod(block * int(self._quotas[number]) + int(earlier[offset]), walk.length), attempt)

    def _mix(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each position of a block: its source, and how many earlier positions of the block have that source."""
        numbers = np.repeat(np.arange(len(self._quotas)), self._quotas)
        source = default_rng((self.seed, MIX, block)).permutation(numbers)
        earlier = np.empty(MIX_BLOCK, dtype=np.int64)
        for number, quota in enumerate(self._quotas):
            earlier[source == number] = np.arange(quota)
        return source, earlier

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint stores to go on at `step`, the next one to run."""
        return {"step": step, "seed": self.seed, "global_batch": self.global_batch, "fingerprint": self.fingerprint}

    def resume(self, state: dict[str, Any]) -> int:
        """The step to go on at. Raises ShardError where the run's data is not the data of the state."""
        first = self._hash([s.shards.first_fingerprint for s in self.sources])  # of a checkpoint of version 0.1
        for key, now in self.state(0).items():
            if key != "step" and state[key] != now and not (key == "fingerprint" and state[key] == first):
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
