"""Everything at image level: coarse pre-training, the tasks fine-tuned from it, and their evaluation.

    deepspeed src/fiber/stage1_coarse.py --config FILE [--mode train|eval] [key.path=value ...]

Running the same command again goes on where the run stopped.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerFast

from fiber import distributed
from fiber.config.base import Command
from fiber.config.stage1 import Stage1Config, validate
from fiber.data.collate import collate
from fiber.evaluation import image_tasks
from fiber.evaluation.captioning import caption_reward
from fiber.evaluation.progress import Progress
from fiber.tasks.coarse_run import build_sample, build_task, export_model, open_tokenizer, start_from
from fiber.training import run, zero
from fiber.training.flops import FlopsPerSample, pair_cost
from fiber.training.watchdog import Watchdog


def stage1(command: Command, watchdog: Watchdog) -> None:
    config: Stage1Config = command.config
    tokenizer = open_tokenizer(config)
    evaluate = partial(evaluation, config, tokenizer, watchdog)

    if command.mode == "eval":
        task = build_task(config, tokenizer)
        step = restore(config, task)
        figures = evaluate(task.to(distributed.device()), step)
        if distributed.is_main():
            print(json.dumps({"step": step} | figures))
        return

    rewarded = config.task == "caption" and config.caption.objective == "cider"
    stream = run.open_stream(config, per="image" if rewarded else "annotation")
    corpus = [source.shards for source in stream.sources]
    reward = caption_reward(config.caption, tokenizer, corpus, Path(config.output)) if rewarded else None
    build = partial(build_task, config, tokenizer, reward)
    task = build()
    run.start_towers(config, task.model.backbone, tokenizer)
    if config.init_from is not None:
        report = start_from(task, config.init_from)
        if distributed.is_main():
            print(f"weights of {config.init_from}\n{report.table()}")
    run.train(
        config,
        task,
        stream,
        run.batches(config, stream, build_sample(config, tokenizer), collate),
        lambda engine, step: evaluate(zero.plain_module(engine, build), step),
        partial(export_model, config, tokenizer, task),
        watchdog,
        step_cost(config, task),
    )


def restore(config: Stage1Config, task: nn.Module) -> int:
    """The weights to evaluate -> their step: the run's own, or, before it has any, those of `init_from` (step 0)."""
    if config.init_from is None or (Path(config.output) / "checkpoints").exists():
        return run.restore(task, config.output)
    start_from(task, config.init_from)
    return 0


def evaluation(
    config: Stage1Config, tokenizer: PreTrainedTokenizerFast, watchdog: Watchdog, task: nn.Module, step: int
) -> dict[str, float]:
    """Figures of the run's task on the sets of `eval.data`."""
    progress = Progress(show=True, beat=lambda: watchdog.beat(step, "evaluation"))
    sets = [(run.open_shards(source.path), source.field) for source in config.eval.data]
    return image_tasks.evaluate(config, tokenizer, task, sets, step, progress)


def step_cost(config: Stage1Config, task: nn.Module) -> FlopsPerSample | None:
    """Useful forward FLOP of a training sample, the same in all batches; None where they are not counted (captions,
    partly frozen models)."""
    masked = round(config.pretrain.mask_probability * config.max_text)
    cost = pair_cost(task.model, config.image_size, config.max_text, masked)
    costs = {
        "pretrain": cost.shared,
        "retrieval_itc": cost.image_prefix + cost.text_prefix + cost.image_tail + cost.text_tail,
        "nlvr2": 2 * cost.image_prefix + cost.text_prefix + 2 * cost.fusion,
        "caption": None,
    }
    forward = costs.get(config.task, cost.match) if config.tuning.mode == "full" else None
    return None if forward is None else lambda batch: forward


if __name__ == "__main__":
    run.main(Stage1Config, validate, stage1)
