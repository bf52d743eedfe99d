"""Train the configured stage-1 model several times in one job, each time with other overrides, in OUTPUT/NAME.

    deepspeed zero_stages.py CONFIG OUTPUT NAME:key=value,key=value ...

One launch instead of one for every variant: starting a job costs more than training it.
"""

import argparse
from pathlib import Path

from fiber import distributed
from fiber.config.command import Command
from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config, validate
from fiber.stage1_coarse import stage1
from fiber.training.watchdog import Watchdog


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("config")
    parser.add_argument("output", type=Path)
    parser.add_argument("variants", nargs="+")
    arguments = parser.parse_args()
    distributed.initialize(120.0)
    watchdog = Watchdog(120.0)
    for variant in arguments.variants:
        name, _, overrides = variant.partition(":")
        changed = [f"output={arguments.output / name}", *overrides.split(",")]
        config = load_config(Stage1Config, arguments.config, changed)
        validate(config, distributed.world_size())
        stage1(Command(config, "train"), watchdog)
    watchdog.close()


if __name__ == "__main__":
    main()
