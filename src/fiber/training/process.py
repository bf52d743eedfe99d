"""A process of a distributed job: its command line, its guard, and one line where the trouble is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fiber import distributed
from fiber.config.command import Command, exit_with, parse_command
from fiber.errors import KnownError
from fiber.training.watchdog import Watchdog
from fiber.weights.export import inherited_sizes


def main(kind: type, check: Callable[[Any, int | None], None], stage: Callable[[Command, Watchdog], None]) -> None:
    """Run `stage` as a process of a distributed job, after parsing and checking its configuration, see `guarded`."""
    command = parse_command(kind, check, inherit=inherited_sizes)
    guarded(command.config.train.hang_timeout_s, partial(stage, command))


def guarded(hang_timeout_s: float, work: Callable[[Watchdog], None]) -> None:
    """Join the other ranks and do `work`, guarded against dead and hung ones. Exit status: 0 done or stopped by a
    signal, 2 a known error, 1 anything else."""
    distributed.initialize(hang_timeout_s)
    watchdog = Watchdog(hang_timeout_s)
    try:
        with watchdog.guard():
            work(watchdog)
    except KnownError as error:
        watchdog.beat(0, "ending")
        exit_with(error)
    watchdog.close()
    distributed.shutdown()
