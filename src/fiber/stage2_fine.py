"""Everything at region level: fine pre-training on grounding and detection data, and its evaluation.

    deepspeed src/fiber/stage2_fine.py --config FILE [--mode train|eval] [key.path=value ...]

Running the same command again goes on where the run stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerFast

from fiber import distributed
from fiber.config import Command, ConfigError
from fiber.config_stage2 import Stage2Config, validate_stage2
from fiber.data.stream import MixedStream
from fiber.data.text import load_tokenizer
from fiber.distributed import Watchdog
from fiber.evaluation.figures import draw_predictions
from fiber.evaluation.gallery import Meter
from fiber.evaluation.regions import WholePicture, evaluate_regions
from fiber.fine.build import build_sample, build_task, export_detector, start_from
from fiber.fine.prompts import PromptBuilder
from fiber.fine.samples import RegionShards, collate_regions
from fiber.training import run, zero
from fiber.training.loop import Batch


def stage2(command: Command, watchdog: Watchdog) -> None:
    config: Stage2Config = command.config
    try:
        tokenizer = load_tokenizer(config.tokenizer)
    except ValueError as error:
        raise ConfigError(f"tokenizer: {error}") from None
    build = partial(build_task, config, tokenizer)
    evaluate = partial(evaluation, config, tokenizer, watchdog)

    if command.mode == "eval":
        task = build()
        step = run.restore(task, config.output)
        figures = evaluate(task.to(distributed.device()), step)
        if distributed.is_main():
            print(json.dumps({"step": step} | figures))
        return

    stream, categories = open_stream(config)
    task = build()
    run.start_towers(config, task.model.backbone, tokenizer)
    if config.init_from is not None:
        report = start_from(task.model, config.init_from, tokenizer)
        if distributed.is_main():
            print(f"weights of {config.init_from}\n{report.table()}")
    batches = run.batches(config, stream, build_sample(config, tokenizer), collate_regions)
    run.train(
        config,
        task,
        stream,
        lambda start: counted(batches(start)),
        lambda engine, step: evaluate(zero.plain_module(engine, build), step),
        partial(export_detector, config, tokenizer, categories),
        watchdog,
    )


def open_stream(config: Stage2Config) -> tuple[MixedStream, list[str]]:
    """The training order, and the class names of the first detection set in it. Raises ShardError."""
    stream, categories = run.open_stream(config), []
    for source in stream.sources:
        source.shards = RegionShards(source.shards.path)
        source.shards.check(source.field)
        if source.field == "boxes":
            categories = categories or source.shards.facts.names
    return stream, categories


def counted(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, boxes that were left out counted as faults are: by reason."""
    for batch in batches:
        batch["faults"] += batch.pop("dropped")
        yield batch


def evaluation(
    config: Stage2Config, tokenizer: PreTrainedTokenizerFast, watchdog: Watchdog, task: nn.Module, step: int
) -> dict[str, float]:
    """Figures on every set of `eval.data`, prefixed by the set's name where several are asked the same way; leaves
    drawn examples in the run's `figures/`."""
    meter, figures = Meter(show=True, beat=lambda: watchdog.beat(step, "evaluation")), {}
    builder = PromptBuilder(tokenizer, config.max_text)
    picture = WholePicture(config.regions.test_side, config.regions.max_side)
    fields = [source.field for source in config.eval.data]
    for source in config.eval.data:
        shards = run.open_shards(source.path)
        place = {"folder": Path(config.output) / "predictions", "meter": meter}
        size = {"batch": config.eval.batch, "workers": config.data.workers}
        found = evaluate_regions(task.model, builder, shards, source.field, picture, **place, **size)
        if distributed.is_main():
            name, folder = f"step_{step:06d}_{shards.name}_{source.field}", Path(config.output) / "figures"
            folder.mkdir(parents=True, exist_ok=True)
            asked = (builder, shards, source.field, picture)
            for number, image in enumerate(draw_predictions(task.model, *asked, count=config.regions.pictures)):
                image.save(folder / f"{name}_{number:02d}.png")
        prefix = f"{shards.name}/" if fields.count(source.field) > 1 else ""
        figures |= {prefix + name: value for name, value in found.items()}
    return figures


if __name__ == "__main__":
    run.main(Stage2Config, validate_stage2, stage2)
