"""`fiber eval`: figures of a trained model on held-out data."""

from __future__ import annotations

import argparse

from fiber.cli import launcher

DESCRIPTION = """Evaluate a run, or the weights that a configuration starts from; the last line is JSON.

    fiber eval runs/coarse                              on the data of its configuration
    fiber eval runs/coarse data=S                       on S/test, or else S/val; or S itself, one set
    fiber eval stage2/odinw data=S init_from=MODEL output=runs/zero_shot

Predictions are left in the run directory: `predictions/`.

Exit status: 0 done; 2 a clear error; 1 anything else.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("config", metavar="RUN|CONFIG", help="run directory, file, or name of `fiber config list`")
    launcher.options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Start the job and wait for it; -> its exit status."""
    return launcher.start(launcher.Job.of(arguments.config, arguments.overrides, "eval"), "eval", arguments)
