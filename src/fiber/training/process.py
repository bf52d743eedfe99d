"""A process of a distributed job: its command line, its guard, and one line where the trouble is known."""

from __future__ import annotations

import resource
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from fiber import cards, distributed
from fiber.config.command import Command, exit_with, parse_command
from fiber.errors import INTERRUPTED, ConfigError, Interrupted, KnownError, one_line
from fiber.training.watchdog import Watchdog
from fiber.weights.export import inherited_sizes

FEWEST_FILES, MOST_FILES = 256, 65536  # open files of a process: without, and asked for


def main(kind: type, check: Callable[[Any, int | None], None], stage: Callable[[Command, Watchdog], None]) -> None:
    """Run `stage` as a process of a distributed job, after parsing and checking its configuration, see `guarded`."""
    command = parse_command(kind, check, inherit=inherited_sizes)
    guarded(command.config.train.hang_timeout_s, partial(stage, command))


def guarded(hang_timeout_s: float, work: Callable[[Watchdog], None]) -> None:
    """Join the other ranks and do `work`, guarded against dead and hung ones. Exit status: 0 done, INTERRUPTED
    stopped by a signal and saved, 2 a known error, 1 anything else. Of ranks that fail together one speaks."""
    watchdog, status = None, 0
    try:
        _allow_open_files()
        cards.choose_kernels(distributed.initialize(hang_timeout_s))
        watchdog = Watchdog(hang_timeout_s)
        with watchdog.guard():
            work(watchdog)
    except Interrupted as stop:
        status = INTERRUPTED
        if distributed.is_main():
            print(stop, file=sys.stderr, flush=True)
    except (Exception, KeyboardInterrupt) as error:
        line = one_line(error)
        said = traceback.format_exc() if line is None else f"error: {line}"
        status = 2 if isinstance(error, KnownError) else 1
        if watchdog is not None:
            watchdog.leave(said, status)
        if line is None:
            raise
        exit_with(ConfigError(line), status)
    if watchdog is not None:
        watchdog.close()
    distributed.shutdown()
    sys.exit(status)


def _allow_open_files() -> None:
    """As many open files as the system lets this process have: batches of loader workers hold some. Raises
    ConfigError where there are too few: workers that meet the limit do not say so, the job would hang."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < FEWEST_FILES:
        raise ConfigError(f"{hard} open files are too few for a job: raise `ulimit -n` to {FEWEST_FILES} or more")
    if 0 <= soft < MOST_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_FILES if hard < 0 else min(hard, MOST_FILES), hard))
