"""What a long job shows on stderr while it runs.

Written by ourselves, not by tqdm: nested bars of a terminal move the cursor up, and in a log file or a pipe that is
rubbish between the lines.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

Item = TypeVar("Item")

EVERY_TERMINAL, EVERY_LOG = 0.2, 30.0
"""Seconds between two looks, in a terminal and elsewhere."""


class Countdown:
    """The phase of a job, what it counts and how much of it is done, how fast, and the time left.

    In a terminal one line that is written over; elsewhere a line every half a minute, and plain text alone.

    phase: what is done now ("training", "converting coco"). total: how much there is, None where that is not known.
    unit: what is counted, in the plural. done: what was done before this job, which its rate does not count. show:
    False on all ranks but one. leave: whether the last state stays to be read, however short the job was.
    """

    def __init__(
        self,
        phase: str,
        total: int | None = None,
        unit: str = "images",
        *,
        done: int = 0,
        show: bool = True,
        leave: bool = False,
    ) -> None:
        self.phase, self.total, self.unit, self.show, self.leave = phase, total, unit, show, leave
        self.done, self.skipped, self.note = 0, done, ""
        self.start = self.last = time.monotonic()
        self.written = False

    def restart(self) -> None:
        """The job begins now, not when this was made."""
        self.start = self.last = time.monotonic()

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each counted when it has been used; then `close`."""
        try:
            for item in items:
                yield item
                self.add()
        finally:
            self.close()

    def skip(self, count: int = 1) -> None:
        """`count` more were done before: the rate is that of this job."""
        self.skipped += count

    def add(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        if self.show and time.monotonic() - self.last >= (EVERY_TERMINAL if sys.stderr.isatty() else EVERY_LOG):
            self.last = time.monotonic()
            self._write()

    def text(self) -> str:
        """What is shown: with `note`, which the job may set to more about its state."""
        at, rate = self.skipped + self.done, self.done / max(time.monotonic() - self.start, 1e-9)
        parts = [f"{self.phase}: {at:,}" + ("" if self.total is None else f" of {self.total:,}") + f" {self.unit}"]
        parts.append(f"{rate:.1f} {self.unit} per second")
        if self.total is not None and self.done:  # of no item yet, nobody knows
            left = min((self.total - at) / max(rate, 1e-9), 1e8)
            parts.append(f"{timedelta(seconds=round(left))} left")
        return ", ".join(part for part in [*parts, self.note] if part)

    def say(self, line: str) -> None:
        """A line of its own, above what is shown."""
        self._clear()
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """The job is done, or has been stopped: the last state stays where it is wanted, or was shown in a log."""
        if self.show and (self.leave or (self.written and not sys.stderr.isatty())):
            self._write()
            print(end="\n" if sys.stderr.isatty() else "", file=sys.stderr, flush=True)
        else:
            self._clear()
        self.show = self.written = False

    def _clear(self) -> None:
        if self.written and sys.stderr.isatty():
            print(end="\r\x1b[K", file=sys.stderr, flush=True)

    def _write(self) -> None:
        self.written, text = True, self.text()
        if sys.stderr.isatty():
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            text = text[: columns - 1]  # a line that breaks cannot be written over
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
