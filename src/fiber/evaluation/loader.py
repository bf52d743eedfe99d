"""A rank's share of an evaluation set, as batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fiber import distributed
from fiber.data.collate import collate
from fiber.data.loader import eval_loader
from fiber.data.order import Per
from fiber.data.records import Sample, validate_record
from fiber.data.shards import ShardSet


def check_record(sample: Sample, field: str) -> None:
    """Raises SampleFault unless the whole record keeps to the schema, for `field` "boxes" with the classes of its
    set: scoring and drawing read more of a record than the one annotation that a sample is made of."""
    validate_record(sample.record, set(sample.facts.index) if field == "boxes" else None)


@dataclass(frozen=True)
class WholeRecords:
    """`make_sample` after `check_record`."""

    make_sample: Callable

    def __call__(self, sample: Sample, field: str, annotation: int, rng: np.random.Generator) -> dict[str, Any]:
        """Raises SampleFault."""
        check_record(sample, field)
        return self.make_sample(sample, field, annotation, rng)


@dataclass(frozen=True)
class EvalLoader:
    """This rank's batches of a shard set, read again at each iteration; see `data.loader.eval_loader` for `per`."""

    shards: ShardSet
    field: str
    make_sample: Callable
    per: Per | Literal["every_image"]
    batch: int
    workers: int

    def __iter__(self) -> Iterator[dict]:
        return eval_loader(
            self.shards,
            self.field,
            WholeRecords(self.make_sample),
            collate,
            batch=self.batch,
            rank=distributed.rank(),
            world=distributed.world_size(),
            workers=self.workers,
            per=self.per,
        )

    def __len__(self) -> int:
        counts = self.shards.counts(self.field)
        items = {"annotation": int(counts.sum()), "image": int((counts > 0).sum()), "every_image": len(counts)}[
            self.per
        ]
        share = len(range(distributed.rank(), items, distributed.world_size()))
        return -(-share // self.batch)
