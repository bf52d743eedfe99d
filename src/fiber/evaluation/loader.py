"""A rank's share of an evaluation set, as batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from fiber import distributed
from fiber.data.collate import collate
from fiber.data.loader import eval_loader
from fiber.data.order import Per
from fiber.data.shards import ShardSet


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
            self.make_sample,
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
