"""Everything at region level: fine pre-training, fine-tuning on grounding and detection data, and evaluation.

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
from fiber.config.base import Command
from fiber.config.stage2 import Stage2Config, validate_stage2
from fiber.data.order import MixedStream
from fiber.data.samples.regions import RegionSample, RegionShards, collate_regions
from fiber.evaluation import region_tasks
from fiber.evaluation.progress import Progress
from fiber.tasks.fine_run import build_sample, build_task, export_detector, open_tokenizer, start_from
from fiber.training import run, zero
from fiber.training.flops import image_cost
from fiber.training.loop import Batch, FlopsPerSample
from fiber.training.watchdog import Watchdog


def stage2(command: Command, watchdog: Watchdog) -> None:
    config: Stage2Config = command.config
    tokenizer = open_tokenizer(config)
    build = partial(build_task, config, tokenizer)
    evaluate = partial(evaluation, config, tokenizer, watchdog)

    if command.mode == "eval":
        task = build()
        step = restore(config, task, tokenizer)
        figures = evaluate(task.to(distributed.device()), step)
        if distributed.is_main():
            print(json.dumps({"step": step} | figures))
        return

    sample = build_sample(config, tokenizer)
    stream, categories = open_stream(config, sample)
    task = build()
    run.start_towers(config, task.model.backbone, tokenizer)
    if config.init_from is not None:
        report = start_from(task.model, config.init_from, tokenizer)
        if distributed.is_main():
            print(f"weights of {config.init_from}\n{report.table()}")
    batches = run.batches(config, stream, sample, collate_regions)
    run.train(
        config,
        task,
        stream,
        lambda start: counted(batches(start)),
        lambda engine, step: evaluate(zero.plain_module(engine, build), step),
        partial(export_detector, config, tokenizer, categories),
        watchdog,
        step_cost(config, task),
    )


def step_cost(config: Stage2Config, task: nn.Module) -> FlopsPerSample | None:
    """Useful forward FLOP of a training image by the size of its batch; None where it is not counted (partly frozen
    models, but for the first image stages)."""
    if config.tuning.mode != "full":
        return None
    sides = config.regions.short_sides
    return image_cost(task.model, (min(sides), max(sides)), config.max_text)


def restore(config: Stage2Config, task: nn.Module, tokenizer: PreTrainedTokenizerFast) -> int:
    """The weights to evaluate -> their step: the run's own, or, before it has any, those of `init_from` (step 0)."""
    if config.init_from is None or (Path(config.output) / "checkpoints").exists():
        return run.restore(task, config.output)
    start_from(task.model, config.init_from, tokenizer)
    return 0


def open_stream(config: Stage2Config, sample: RegionSample) -> tuple[MixedStream, list[str]]:
    """The training order, and the class names of the first detection set in it. Raises ShardError."""
    stream, categories = run.open_stream(config), []
    for source in stream.sources:
        source.shards = RegionShards(source.shards.path)
        source.shards.check(source.field, sample.builder if sample.classes == "all" else None)
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
    """Figures on the sets of `eval.data`."""
    progress = Progress(show=True, beat=lambda: watchdog.beat(step, "evaluation"))
    sets = [(run.open_shards(source.path), source.field) for source in config.eval.data]
    return region_tasks.evaluate(config, tokenizer, task.model, sets, step, progress)


if __name__ == "__main__":
    run.main(Stage2Config, validate_stage2, stage2)
