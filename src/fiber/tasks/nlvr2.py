"""Statements about two images (NLVR2; FIBER §4.1): true or false, two fused passes that share the text's prefix."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerFast

from fiber.coarse.heads import FUSED_PAIR
from fiber.config.stage1 import Stage1Config
from fiber.data.samples.text import ImageTransform
from fiber.evaluation.classes import evaluate_classes
from fiber.evaluation.context import EvalContext, evaluate_sets
from fiber.evaluation.metrics import nlvr2_accuracy
from fiber.evaluation.predictions import Row, read_predictions
from fiber.tasks.classifier import ClassifyTask, LabelledSample, majority
from fiber.tasks.coarse_model import CoarseTask, build_model, coarse_task, image_text_flops
from fiber.training.speed import FlopsPerSample
from fiber.training.task import Figures

CLASSES = (False, True)


def build_sample(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> LabelledSample:
    """A statement, its two images and its truth."""
    transform = ImageTransform.of(config, training=True)
    return LabelledSample(tokenizer, transform, config.max_text, images=2, classes=CLASSES)


def build_module(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> ClassifyTask:
    """The model with a head over two fused pairs, and its loss."""
    model = build_model(config, tokenizer, {"nlvr2": len(CLASSES)}, vectors={"nlvr2": 2 * FUSED_PAIR})
    return ClassifyTask(model, "nlvr2", label_smoothing=config.finetune.label_smoothing)


@dataclass(frozen=True)
class Nlvr2Scorer:
    """Accuracy and consistency next to the accuracy of the more frequent truth value."""

    context: EvalContext
    name: ClassVar[str] = "nlvr2"
    key: ClassVar[tuple[str, ...]] = ("id",)

    def row(self, best: int, annotation: dict[str, Any]) -> Row:
        """What is written of a statement."""
        return {"id": annotation["id"], "label": CLASSES[best]}

    def score(self, path: Path) -> Figures:
        """Figures of the rows in `path`; a set without labels is only predicted."""
        context = self.context
        if "label" not in next(context.annotations()):
            return {"statements": context.shards.count(context.field)}
        figures = nlvr2_accuracy.evaluate(context.annotations(), read_predictions(path))
        labels = Counter(statement["label"] for statement in context.annotations())
        return figures | {"majority_accuracy": majority(labels)}

    def show(self, annotation: dict[str, Any], row: Row) -> dict[str, str]:
        """The words to show next to an example's images."""
        truth = str(annotation.get("label", ""))
        return {"statement": annotation["text"], "truth": truth, "prediction": str(row["label"])}


def evaluate(task: ClassifyTask, context: EvalContext) -> Figures:
    """Figures of one set."""
    return evaluate_classes(task, context, Nlvr2Scorer(context), images=2)


def flops(config: Stage1Config, module: CoarseTask) -> FlopsPerSample | None:
    """Two images, one text, two fused passes."""
    return image_text_flops(config, module, lambda c: 2 * c.image_prefix + c.text_prefix + 2 * c.fusion)


TASK = coarse_task(
    name="nlvr2",
    fields=("statements",),
    build_sample=build_sample,
    build_module=build_module,
    evaluate=partial(evaluate_sets, evaluate),
    flops=flops,
    sections=("finetune",),
    headline=("accuracy",),
)
