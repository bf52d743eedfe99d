"""Images read and decoded by threads, ahead of the model, in order.

Threads and not processes: Pillow, libjpeg-turbo and torch let go of the interpreter while they decode and resize, and
threads need no copy of the model, no shared memory and no guard in a user's script.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
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


class Countdown:
    """Progress on stderr: images done, images per second, time left. In a terminal one line that is written over,
    elsewhere a line every half a minute."""

    def __init__(self, what: str, total: int, show: bool = True) -> None:
        self.what, self.total, self.show = what, total, show
        self.done = self.skipped = 0
        self.start = self.last = time.monotonic()
        self.every = 0.2 if sys.stderr.isatty() else 30.0
        self.written = False

    def skip(self, count: int = 1) -> None:
        """Images that an earlier run has done: the rate is that of this one."""
        self.skipped += count

    def add(self, count: int) -> None:
        """Images that are done."""
        self.done += count
        if self.show and time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            self._write(self.text())

    def text(self) -> str:
        """What is shown."""
        rate = self.done / max(time.monotonic() - self.start, 1e-9)
        left = (self.total - self.skipped - self.done) / max(rate, 1e-9)
        clock = str(timedelta(seconds=round(min(left, 1e8))))
        at = self.skipped + self.done
        return f"{self.what}: {at:,} of {self.total:,} images, {rate:.1f} images per second, {clock} left"

    def close(self) -> None:
        """End the line."""
        if self.written and sys.stderr.isatty():
            self._write("")

    def _write(self, text: str) -> None:
        self.written = True
        terminal = sys.stderr.isatty()
        print(f"\r{text}\x1b[K" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)
