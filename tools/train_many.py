"""Train several runs of stage 2 one after the other in one job: starting a job costs more than a short run.

    deepspeed [launcher options] tools/train_many.py --config FILE --runs LIST [key.path=value ...]

Each line of LIST holds the key.path=value words of one run, its `output` among them; those of the command line hold
for all. A run is what `stage2_fine.py` would do with them. All are checked before the first starts, finished ones are
left alone, and the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from fiber.cli.numbers import whole_number
from fiber.config.command import Command, parse_command
from fiber.config.stage2 import Stage2Config, validate_stage2
from fiber.stage2_fine import stage2
from fiber.training import process
from fiber.training.watchdog import Watchdog
from fiber.weights.export import inherited_sizes


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument(
        "--local_rank", type=whole_number(0), default=0, help=argparse.SUPPRESS
    )  # the deepspeed launcher's
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    arguments = parser.parse_intermixed_args()
    lines = [shlex.split(line) for line in arguments.runs.read_text().splitlines()]
    commands = [
        parse_command(
            Stage2Config,
            validate_stage2,
            ["--config", arguments.config, *arguments.overrides, *words],
            inherited_sizes,
        )
        for words in lines
        if words
    ]

    def train(watchdog: Watchdog) -> None:
        for command in commands:
            if not finished(command):
                stage2(command, watchdog)

    if commands:
        process.guarded(max(command.config.train.hang_timeout_s for command in commands), train)


def finished(command: Command) -> bool:
    """Whether the run has written its summary, the last thing that a run does, after all its steps."""
    summary = Path(command.config.output) / "summary.json"
    return summary.exists() and json.loads(summary.read_text())["steps"] >= command.config.train.steps


if __name__ == "__main__":
    main()
