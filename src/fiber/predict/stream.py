"""Images read and decoded by threads, ahead of the model, in order.

Threads and not processes: Pillow, libjpeg-turbo and torch let go of the interpreter while they decode and resize, and
threads need no copy of the model, no shared memory and no guard in a user's script.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fiber.predict.sources import ImageError

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def default_workers() -> int:
    """As many threads as this process may use cores, 16 at most."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def load_ahead(
    items: Iterable[Item], load: Callable[[Item], Loaded], ahead: int, workers: int | None = None
) -> Iterator[tuple[Item, Loaded | ImageError]]:
    """Every item with what `load` makes of it, or with the ImageError that it raised, in order. At most `ahead` items
    are loaded before they are asked for, by `workers` threads."""
    pool = ThreadPoolExecutor(workers or default_workers(), thread_name_prefix="fiber-images")
    waiting: deque[tuple[Item, Future[Loaded]]] = deque()

    def first() -> tuple[Item, Loaded | ImageError]:
        item, future = waiting.popleft()
        try:
            return item, future.result()
        except ImageError as error:
            return item, error

    try:
        for item in items:
            waiting.append((item, pool.submit(load, item)))
            if len(waiting) > ahead:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def in_groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
