"""Train the configured stage-1 model several times in one job, each time with other overrides, in OUTPUT/NAME.

    deepspeed zero_stages.py CONFIG OUTPUT NAME:key=value,key=value ...

One launch instead of one for every variant: starting a job costs more than training it.
"""

import argparse
from functools import partial
from pathlib import Path

from fiber import distributed
from fiber.coarse.build import build_sample, build_task
from fiber.config import load_config
from fiber.config_stage1 import Stage1Config, validate
from fiber.data.collate import collate
from fiber.data.text import load_tokenizer
from fiber.distributed import Watchdog
from fiber.stage1_coarse import evaluation
from fiber.training import run, zero


def train(config: Stage1Config, watchdog: Watchdog) -> None:
    tokenizer = load_tokenizer(config.tokenizer)
    build = partial(build_task, config, tokenizer)
    stream = run.open_stream(config)
    run.train(
        config,
        build(),
        stream,
        run.batches(config, stream, build_sample(config, tokenizer), collate),
        lambda engine, step: evaluation(config, tokenizer, watchdog, zero.plain_module(engine, build), step),
        lambda weights, figures: None,
        watchdog,
    )


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
        train(config, watchdog)
    watchdog.close()


if __name__ == "__main__":
    main()
