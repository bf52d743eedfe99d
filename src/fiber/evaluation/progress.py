"""How an evaluation shows that it lives."""

from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass

from fiber import distributed
from fiber.countdown import Countdown


@dataclass(frozen=True)
class Progress:
    """How an evaluation shows that it lives: `show` a bar with the time left on rank 0, and `beat` called after
    every batch (a watchdog's, say)."""

    show: bool = False
    beat: Callable[[], None] = lambda: None

    def __call__(self, batches: Iterable, what: str, total: int | None = None) -> Iterable:
        """The batches, counted; `total` for a stream that does not know how many it has."""
        total = len(batches) if isinstance(batches, Sized) else total
        show = self.show and distributed.is_main()
        for batch in Countdown(f"evaluating, {what}", total, "batches", show=show).over(batches):
            yield batch
            self.beat()
