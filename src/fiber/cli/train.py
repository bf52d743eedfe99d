"""`fiber train`: train a configuration, or go on with it."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from fiber.cli import launcher
from fiber.cli.config import find, is_shipped

DESCRIPTION = """Train a configuration, on every GPU of this machine (on the CPU where there is none).

    fiber train stage1/shapes_tiny tokenizer=tok data=shards output=runs/coarse
    fiber train stage2/odinw data=S init_from=MODEL train.steps=500
    fiber train mine.yaml --ranks 2
    fiber train mine.yaml --hostfile hosts              several machines

CONFIG is a file or a name of `fiber config list`; key.path=value changes one of its keys (docs/config.md lists them).
data=S is short for the paths of every source: S/train to learn from, S/val to evaluate on; or S itself, one set.
init_from=MODEL brings the model's sizes and its tokenizer, unless tokenizer= is given, too.
The same command again goes on where the run stopped. Where the ranks do not share the global batch evenly,
train.micro_batch and train.accumulation are set so that they do, and this is said.

Exit status: 0 finished; 75 stopped by a signal and saved, not finished; 2 a clear error; 1 anything else.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("config", metavar="CONFIG", help="file, or name of `fiber config list`")
    launcher.options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Start the job and wait for it; -> its exit status."""
    config, overrides = arguments.config, arguments.overrides
    if not Path(config).stem.startswith("own_") or not is_shipped(find(config)):
        return launcher.start(launcher.Launch.of(config, overrides, "train"), "train", arguments)
    own = importlib.import_module("fiber.cli.own")  # sizes that follow from one's own data
    name = Path(config).stem
    overrides, reasons = own.expand(name, overrides, arguments.ranks)
    print("\n".join(reasons), file=sys.stderr)
    status = launcher.start(launcher.Launch.of(config, overrides, "train"), "train", arguments)
    if status == 0:
        print("\n".join(own.closing(name, overrides)), file=sys.stderr)
    return status
