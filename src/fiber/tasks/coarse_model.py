"""What all tasks at image level share: the model of a run, what it trains, where its weights come from, what its
export holds, and what a sample costs."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.backbone.lora import add_lora, merge_lora
from fiber.coarse.model import CoarseModel
from fiber.config.base import TuningConfig
from fiber.config.stage1 import Stage1Config
from fiber.data.collate import collate
from fiber.errors import WeightsError
from fiber.tasks.compiled import compile_blocks
from fiber.tasks.flops import PairCost, pair_cost, weightless
from fiber.training.speed import FlopsPerSample
from fiber.training.task import Task, TaskModule
from fiber.weights.export import Export, read_export
from fiber.weights.export_config import coarse_config, read_config
from fiber.weights.hub import export_folder
from fiber.weights.load import CAPTION_MAPS, NEW_IN_COARSE, LoadReport, load_weights


class CoarseTask(TaskModule):
    """A task at image level."""

    model: CoarseModel


def build_model(
    config: Stage1Config,
    tokenizer: PreTrainedTokenizerBase,
    classifiers: Mapping[str, int] | None = None,
    vectors: Mapping[str, int] | None = None,
) -> CoarseModel:
    """The image-level model of a run, with initial weights drawn from the run's seed (the same on all ranks), and
    what the run does not train frozen. `classifiers`: answer heads and their numbers of classes; `vectors`: how
    many pooled vectors each reads (`CoarseHeads`)."""
    model = CoarseModel(
        build_backbone(config.model, len(tokenizer), tokenizer.pad_token_id, config.max_text),
        head_width=config.model.head_width,
        vocab_size=len(tokenizer),
        classifiers=dict(classifiers or {}),
        vectors=vectors,
    )
    initialise(model, config.model.init, config.seed)
    tune(model, config.tuning, config.seed)
    compile_blocks(model, config)
    return model


def tune(model: CoarseModel, tuning: TuningConfig, seed: int) -> None:
    """Freeze what `tuning` does not train, and add what it trains instead."""
    if tuning.mode == "frozen_towers":
        model.backbone.image.requires_grad_(False)
        model.backbone.text.requires_grad_(False)
    elif tuning.mode == "lora":
        add_lora(model, tuning.lora_rank, tuning.lora_alpha, seed)


def start_from(task: CoarseTask, path: str | Path, tokenizer: PreTrainedTokenizerBase) -> LoadReport:
    """Put the weights of a run or export of either stage into the model of `task`, in place. Answer heads may stay
    new (and do where the file's stands for other answers), and so may parts that the task does not reach, and what
    captioning adds; from a detector all heads do, and the image tower's last norm. Raises WeightsError."""
    export = read_export(path)
    tensors = export.tensors
    if task.answers and list(task.answers) != export.answers:
        heads = tuple(f"heads.classifiers.{name}." for name in task.model.heads.classifiers)
        tensors = {name: x for name, x in tensors.items() if not name.startswith(heads)}
    new = ("heads.classifiers.*", "*.lora_down", "*.lora_up", CAPTION_MAPS, *task.unused_parameters)
    new += NEW_IN_COARSE if export.config.stage == "fine" else ()
    return load_weights(task.model, tensors, allow_new=new)


def export(
    config: Stage1Config, tokenizer: PreTrainedTokenizerFast, task: CoarseTask, weights: Mapping[str, Tensor]
) -> Export:
    """What the export of a run holds: a plain model, adapters merged, without the heads that its task has left
    behind. weights: of the task, by name."""
    tensors = {name.removeprefix("model."): x for name, x in weights.items() if name.startswith("model.")}
    tensors = merge_lora(tensors, config.tuning.lora_alpha, config.tuning.lora_rank)
    stale = [p for p in task.unused_parameters if re.fullmatch(r"heads\.\w+\.\*", p)]  # heads as a whole
    tensors = {n: x for n, x in tensors.items() if not any(fnmatchcase(n, pattern) for pattern in stale)}
    about = replace(coarse_config(config, tokenizer, task.model.heads.classes), trained=trained_for(config))
    return Export(about, tensors, tokenizer, list(task.answers), [], {})


def trained_for(config: Stage1Config) -> list[str]:
    """The tasks that the weights of a run have been trained for, those before `init_from` first; [] where that is not
    known."""
    if config.init_from is None:
        return [config.task]
    try:
        before = read_config(export_folder(config.init_from))
    except WeightsError:  # it has gone meanwhile
        return []
    if before.stage == "fine":  # of which all heads stay new
        return [config.task]
    return list(dict.fromkeys([*before.trained, config.task])) if before.trained else []


def image_text_flops(
    config: Stage1Config, module: CoarseTask, forward: Callable[[PairCost], float]
) -> FlopsPerSample | None:
    """Useful forward FLOP of a training sample, the same in all batches; None where they are not counted (partly
    frozen models). `forward`: which parts of a pair's cost the task pays."""
    if config.tuning.mode != "full":
        return None
    masked = round(config.pretrain.mask_probability * config.max_text)
    model = weightless(module.model)
    cost = cache(lambda: forward(pair_cost(model, config.image_size, config.max_text, masked)))
    return lambda shape: cost()


def match_flops(config: Stage1Config, module: CoarseTask) -> FlopsPerSample | None:
    """One image, one text, one fused pass."""
    return image_text_flops(config, module, lambda cost: cost.match)


coarse_task = partial(Task, stage="coarse", collate=collate, start_from=start_from, export=export)
"""A row of the table at image level."""
