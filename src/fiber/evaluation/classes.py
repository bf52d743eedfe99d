"""Evaluation of the tasks with a class for an answer: the best class of every annotation, scored on one rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from fiber import distributed
from fiber.data.samples.text import EvalTextSample, ImageTransform
from fiber.evaluation.context import EXAMPLES, EvalContext
from fiber.evaluation.loader import EvalLoader
from fiber.evaluation.predictions import PredictionWriter, Row, merge_predictions, read_predictions
from fiber.training.task import Figures


class Scorer(Protocol):
    """What a task says of its answers. `key` makes a row unique and sorts the file NAME.jsonl."""

    name: ClassVar[str]
    key: ClassVar[tuple[str, ...]]

    def row(self, best: Any, annotation: dict[str, Any]) -> Row:
        """What is written of an annotation whose best class (or what else was chosen) is `best`."""

    def score(self, path: Path) -> Figures:
        """Figures of the merged rows."""

    def show(self, annotation: dict[str, Any], row: Row) -> dict[str, str]:
        """The words to show next to an example's image."""


class Classifying(Protocol):
    """A task's module that gives a score per class."""

    def logits(self, batch: Any) -> Tensor:
        """A batch of EvalTextSample on the device -> (B,K)."""


def best_class(logits: Tensor) -> list[Any]:
    """(B,K) -> the class of the highest score of each row."""
    return logits.argmax(-1).tolist()


def evaluate_classes(
    task: Classifying,
    context: EvalContext,
    scorer: Scorer,
    images: int = 1,
    choose: Callable[[Tensor], list[Any]] = best_class,
) -> Figures:
    """Predict this rank's share of the annotations, merge the rows, score them on rank 0 and draw a few examples.
    `images` per text. `choose`: what of the scores the scorer's rows are made of. Every rank must call and gets the
    figures."""
    config = context.config
    sample = EvalTextSample(
        context.tokenizer, ImageTransform.of(config, training=False), config.max_text, images=images
    )
    loader = EvalLoader(context.shards, context.field, sample, "annotation", config.eval.batch, config.data.workers)
    rank, world = distributed.rank(), distributed.world_size()
    with PredictionWriter(context.folder, scorer.name, rank, world) as writer:
        for batch in context.progress(loader, scorer.name):
            on_device = {k: v.to(distributed.device()) for k, v in batch.items() if isinstance(v, Tensor)}
            best = choose(task.logits(on_device))
            for number, annotation, position in zip(
                best, batch["annotation"], batch["position"].tolist(), strict=True
            ):
                writer.add(scorer.row(number, annotation) | {"position": position})
    distributed.barrier()
    figures = None
    if distributed.is_main():
        path = merge_predictions(context.folder, scorer.name, world, scorer.key, shards=context.shards.where)
        figures = scorer.score(path)
        _draw(context, scorer, path)
    return distributed.broadcast_object(figures)


def _draw(context: EvalContext, scorer: Scorer, path: Path) -> None:
    """Examples spread evenly over the set."""
    total, examples = context.shards.count(context.field), []
    chosen = set(np.linspace(0, total - 1, min(EXAMPLES, total)).round().astype(int).tolist())
    for row in read_predictions(path):
        if row["position"] in chosen:
            number, annotation = context.sample_of(row["position"])
            examples.append((number, scorer.show(annotation, row)))
    context.draw(examples)
