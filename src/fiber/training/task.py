"""What a task is: a row of `tasks/table.py`. Everything else in the house asks the row, never for a task by its
name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from fiber.backbone.fusion import FusionBackbone
from fiber.data.loader import Collate, MakeSample
from fiber.data.order import Per
from fiber.data.shards import ShardSet
from fiber.training.speed import FlopsPerSample
from fiber.weights.export import Export
from fiber.weights.load import LoadReport

Losses = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Weighted losses with graph, and the detached report: what a task's module gives for a batch."""

Figures = dict[str, float]
Sets = Sequence[tuple[ShardSet, str]]
"""Evaluation sets, each with the annotation field that is evaluated."""


class OnBackbone(Protocol):
    """A model on the fusion backbone: `CoarseModel` and `FiberDetector` are such."""

    backbone: FusionBackbone


class TaskModule(nn.Module):
    """What a training step computes around a `model`: `losses, report = module(batch)`.

    `unused_parameters`: patterns of parameter names that the task never reaches; they are frozen, and new where the
    weights to start from lack them. `answers`: the classes of the model's answer head, where it has words for them.
    A module whose losses are means over something that batches have different numbers of (masked tokens, say) also
    has `loss_normalisers(batch)`, see `training.loop.fetch`.
    """

    model: OnBackbone
    unused_parameters: tuple[str, ...] = ()
    answers: Sequence[str] = ()


@dataclass(frozen=True)
class Task:
    """One task. `config` below is the run's Stage1Config or Stage2Config, `module` what `build_module` gave.

    name: the value of the key `task`. fields: annotation fields that it can read. build_sample(config, tokenizer):
    how a record becomes a training sample; collate: samples into a batch (`data.batches`). build_module(config,
    tokenizer): the model with the run's initial weights, and its losses; prepare(module, config, tokenizer, training
    sets): what training needs besides, once. start_from(module, path, tokenizer): weights of a run or export.
    evaluate(config, tokenizer, module, sets, step, beat): figures; step None rehearses on one batch of each set.
    export(config, tokenizer, module, weights of the module by name): what an export folder holds. flops(config,
    module): useful FLOP of a training sample; the module is whole, ZeRO has not divided it. sections: sections of the
    configuration that only some tasks read. verbs: what the `fiber` command can do with a model of the task, each
    with patterns of the parameters that it needs. headline: the figures of `evaluate` that a model is judged by, best
    first, higher is better. per(config): what an epoch walks.
    """

    name: str
    stage: Literal["coarse", "fine"]
    fields: tuple[str, ...]
    build_sample: Callable[[Any, PreTrainedTokenizerFast], MakeSample]
    collate: Collate
    build_module: Callable[[Any, PreTrainedTokenizerFast], TaskModule]
    start_from: Callable[[Any, str | Path, PreTrainedTokenizerFast], LoadReport]
    evaluate: Callable[[Any, PreTrainedTokenizerFast, Any, Sets, int | None, Callable[[], None]], Figures]
    export: Callable[[Any, PreTrainedTokenizerFast, Any, Mapping[str, Tensor]], Export]
    flops: Callable[[Any, Any], FlopsPerSample | None]
    sections: tuple[str, ...] = ()
    verbs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    headline: tuple[str, ...] = ()
    prepare: Callable[[Any, Any, PreTrainedTokenizerFast, Sequence[ShardSet]], None] | None = None
    per: Callable[[Any], Per] = lambda config: "annotation"  # an epoch walks every one once
