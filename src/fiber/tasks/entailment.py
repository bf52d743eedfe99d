"""Visual entailment (SNLI-VE; FIBER §4.1): the image is the premise, the hypothesis the only text."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerFast

from fiber.config.stage1 import Stage1Config
from fiber.data.records import LABELS
from fiber.data.samples.text import ImageTransform
from fiber.evaluation.classes import evaluate_classes
from fiber.evaluation.context import EvalContext, evaluate_sets
from fiber.evaluation.predictions import Row, read_predictions
from fiber.tasks.classifier import ClassifyTask, LabelledSample, majority
from fiber.tasks.coarse_model import build_model, coarse_task, match_flops
from fiber.training.task import Figures


def build_sample(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> LabelledSample:
    """A hypothesis, its image and its label."""
    transform = ImageTransform.of(config, training=True)
    return LabelledSample(tokenizer, transform, config.max_text, classes=LABELS)


def build_module(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> ClassifyTask:
    """The model with a head over fused pairs, and its loss."""
    model = build_model(config, tokenizer, {"entailment": len(LABELS)})
    return ClassifyTask(model, "entailment", label_smoothing=config.finetune.label_smoothing)


@dataclass(frozen=True)
class EntailmentScorer:
    """Accuracy, of each label too, next to that of the most frequent label."""

    context: EvalContext
    name: ClassVar[str] = "entailment"
    key: ClassVar[tuple[str, ...]] = ("position",)

    def row(self, best: int, annotation: dict[str, Any]) -> Row:
        """What is written of a hypothesis."""
        return {"id": annotation.get("id"), "label": LABELS[best]}

    def score(self, path: Path) -> Figures:
        """Figures of the rows in `path`, which are in the order of the annotations."""
        right: Counter[str] = Counter()
        total: Counter[str] = Counter()
        for annotation, predicted in zip(self.context.annotations(), read_predictions(path), strict=True):
            total[annotation["label"]] += 1
            right[annotation["label"]] += annotation["label"] == predicted["label"]
        figures = {"accuracy": right.total() / total.total(), "majority_accuracy": majority(total)}
        return figures | {f"accuracy_{label}": right[label] / total[label] for label in LABELS if total[label]}

    def show(self, annotation: dict[str, Any], row: Row) -> dict[str, str]:
        """The words to show next to an example's image."""
        return {"hypothesis": annotation["text"], "label": annotation["label"], "prediction": row["label"]}


def evaluate(task: ClassifyTask, context: EvalContext) -> Figures:
    """Figures of one set."""
    return evaluate_classes(task, context, EntailmentScorer(context))


TASK = coarse_task(
    name="entailment",
    fields=("hypotheses",),
    build_sample=build_sample,
    build_module=build_module,
    evaluate=partial(evaluate_sets, evaluate),
    flops=match_flops,
    sections=("finetune",),
    headline=("accuracy",),
)
