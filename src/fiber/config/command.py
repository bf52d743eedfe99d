"""The command line of an entrypoint: `SCRIPT --config FILE [--mode train|eval] [key.path=value ...]`."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

from fiber.config.loading import apply_override, build_config, load_config, read_tree, to_dict
from fiber.errors import ConfigError


class Command(NamedTuple):
    """A parsed command line. `given`: the sections that the file or an override names."""

    config: Any
    mode: Literal["train", "eval"]
    given: frozenset[str] = frozenset()


def parse_command(
    kind: type,
    check: Callable[[Any, int | None], None],
    argv: Sequence[str] | None = None,
    inherit: Callable[[str, str | None], dict[str, Any]] | None = None,
) -> Command:
    """Parse, build and check the configuration of an entrypoint; on a bad one say why on one rank and exit with 2.

    `check(config, world)` raises ConfigError. The world size is the launcher's WORLD_SIZE, 1 without one; None with
    --mode eval. `inherit` as in `load_config`. A run's own file is read leniently, as an older one; overrides not.
    """
    parser = argparse.ArgumentParser(usage="%(prog)s --config FILE [--mode train|eval] [key.path=value ...]")
    parser.add_argument("--config", required=True)
    parser.add_argument("--mode", choices=("train", "eval"), default="train")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher's
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    arguments = parser.parse_intermixed_args(argv)  # overrides may stand before and after options
    file, overrides = arguments.config, arguments.overrides
    try:
        beside = os.path.join(os.path.dirname(file), "deepspeed.json")  # a run has both from the start
        if os.path.basename(file) == "config.yaml" and os.path.isfile(beside):
            tree = to_dict(load_config(kind, file, lenient=True))
            for override in overrides:
                apply_override(tree, override)
            config: Any = build_config(kind, tree)
        else:
            config = load_config(kind, file, overrides, inherit)
        check(config, int(os.environ.get("WORLD_SIZE", "1")) if arguments.mode == "train" else None)
        return Command(config, arguments.mode, frozenset(map(str, read_tree(file, overrides))))
    except ConfigError as error:
        exit_with(error)


def exit_with(error: Exception, code: int = 2) -> NoReturn:
    """End this rank with one line on stderr. Rank 0 speaks; another rank speaks only if it outlives rank 0's turn,
    because then the trouble (a folder missing on one machine, say) is its own."""
    rank = int(os.environ.get("RANK", "0"))
    time.sleep(10.0 if rank else 0.0)  # the launcher ends the job as soon as rank 0 has exited
    where = f" (rank {rank} on {os.uname().nodename})" if rank else ""
    print(f"error: {error}{where}", file=sys.stderr, flush=True)
    sys.exit(code)
