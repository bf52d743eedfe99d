"""Everything at image level: coarse pre-training and its evaluation.

    deepspeed src/fiber/stage1_coarse.py --config FILE [--mode train|eval] [key.path=value ...]

Running the same command again goes on where the run stopped.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from fiber import distributed
from fiber.coarse.build import build_task
from fiber.config import Command, ConfigError
from fiber.config_stage1 import Stage1Config, validate
from fiber.data.collate import PretrainSample, collate
from fiber.data.text import load_tokenizer
from fiber.distributed import Watchdog
from fiber.evaluation.gallery import Meter
from fiber.evaluation.retrieval import evaluate_retrieval, retrieval_sets
from fiber.training import run, zero
from fiber.training.flops import pair_cost
from fiber.weights.export import Card, coarse_config, export_folder, read_config, read_export, write_export
from fiber.weights.load import WeightsError, load_weights


def stage1(command: Command, watchdog: Watchdog) -> None:
    config: Stage1Config = command.config
    tokenizer = open_tokenizer(config)
    build = partial(build_task, config, tokenizer)
    evaluate = partial(evaluation, config, tokenizer, watchdog)

    if command.mode == "eval":
        task = build()
        step = run.restore(task, config.output)
        figures = evaluate(task.to(distributed.device()), step)
        if distributed.is_main():
            print(json.dumps({"step": step} | figures))
        return

    stream = run.open_stream(config)
    exact = config.data.transform == "pil"
    sample = PretrainSample(tokenizer, config.image_size, config.max_text, config.pretrain.mask_probability, exact)
    masked = round(config.pretrain.mask_probability * config.max_text)
    task = build()
    run.start_towers(config, task.model.backbone, tokenizer)
    if config.init_from is not None:
        report = load_weights(task.model, read_export(config.init_from).tensors, allow_new=("heads.classifiers.*",))
        if distributed.is_main():
            print(f"weights of {config.init_from}\n{report.table()}")
    run.train(
        config,
        task,
        stream,
        run.batches(config, stream, sample, collate),
        lambda engine, step: evaluate(zero.plain_module(engine, build), step),
        partial(export, config, tokenizer),
        watchdog,
        pair_cost(task.model, config.image_size, config.max_text, masked).shared,
    )


def open_tokenizer(config: Stage1Config) -> PreTrainedTokenizerFast:
    """The run's tokenizer. Raises ConfigError where there is none, or `init_from` is no export or has another."""
    try:
        tokenizer = load_tokenizer(config.tokenizer)
    except ValueError as error:
        raise ConfigError(f"tokenizer: {error}") from None
    if config.init_from is not None:
        try:
            trained = read_config(export_folder(config.init_from)).vocab_size
        except WeightsError as error:
            raise ConfigError(f"init_from: {error}") from None
        if trained != len(tokenizer):
            raise ConfigError(
                f"tokenizer: {config.tokenizer} has {len(tokenizer)} ids, the model of init_from {trained}; "
                f"use tokenizer={config.init_from}"
            )
    return tokenizer


def evaluation(
    config: Stage1Config, tokenizer: PreTrainedTokenizerFast, watchdog: Watchdog, task: nn.Module, step: int
) -> dict[str, float]:
    """Retrieval on every set of `eval.data` -> figures, prefixed by the set's name where there are several."""
    meter, figures = Meter(show=True, beat=lambda: watchdog.beat(step, "evaluation")), {}
    for source in config.eval.data:
        shards = run.open_shards(source.path)
        images, texts = retrieval_sets(
            shards,
            tokenizer,
            config.image_size,
            config.max_text,
            batch=config.eval.batch,
            workers=config.data.workers,
            field=source.field,
            exact=config.data.transform == "pil",
        )
        size = {"rerank_k": config.eval.rerank_k, "batch": config.eval.batch}
        found = evaluate_retrieval(task.model, images, texts, **size, meter=meter).figures
        prefix = f"{shards.name}/" if len(config.eval.data) > 1 else ""
        figures |= {prefix + name: value for name, value in found.items()}
    return figures


def export(
    config: Stage1Config, tokenizer: PreTrainedTokenizerFast, weights: dict[str, Tensor], figures: dict[str, float]
) -> None:
    """The export folder of a finished run."""
    tensors = {name.removeprefix("model."): x for name, x in weights.items() if name.startswith("model.")}
    card = Card([Path(source.path).name for source in config.data.train], config.train.steps, figures)
    write_export(Path(config.output) / "export", tensors, coarse_config(config, tokenizer), tokenizer, card=card)


if __name__ == "__main__":
    run.main(Stage1Config, validate, stage1)
