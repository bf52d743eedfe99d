"""Visual questions (FIBER §4.1): a sigmoid per answer of a vocabulary, trained on the soft scores of ten annotators.

Shape letters: B batch, L text length, S image side, A answers.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fiber.coarse.model import CoarseModel
from fiber.config.stage1 import Stage1Config
from fiber.data.batches import TextBatch
from fiber.data.records import Sample, annotation
from fiber.data.samples.text import ImageTransform, TextSample
from fiber.data.shards import dataset_info
from fiber.errors import ConfigError, SampleFault
from fiber.evaluation.classes import evaluate_classes
from fiber.evaluation.context import EvalContext, evaluate_sets
from fiber.evaluation.metrics import vqa_accuracy
from fiber.evaluation.predictions import Row, read_predictions
from fiber.tasks.classifier import UNUSED_WHEN_FUSED, ends_of_towers, freeze, fused, report
from fiber.tasks.coarse_model import CoarseTask, build_model, coarse_task, match_flops
from fiber.training.task import Figures, Losses
from fiber.weights.export import answers_of_export

# ---------------------------------------------------------------------------------------------- what it reads


@dataclass(frozen=True)
class VqaSample(TextSample):
    """A question and its image: also targets float32 (A,), the score of every answer of the vocabulary, and
    answers_outside (int), how many given answers are not in it.

    `answers`: answer -> class. A question none of whose answers has a class is left out
    (SampleFault "no_known_answer", a rule and no damage: `records.BY_RULE`).
    """

    answers: Mapping[str, int] = field(kw_only=True)

    def __call__(self, sample: Sample, field: str, number: int, rng: np.random.Generator) -> dict[str, Any]:
        given = annotation(sample.record, field, number).get("answers", [])
        known = [entry for entry in given if entry["answer"] in self.answers]
        if not known:
            raise SampleFault("no_known_answer", f"no answer of {field}[{number}] is in the vocabulary")
        targets = torch.zeros(len(self.answers))
        for entry in known:
            targets[self.answers[entry["answer"]]] = entry["score"]
        made = super().__call__(sample, field, number, rng)
        return made | {"targets": targets, "answers_outside": len(given) - len(known)}


def build_sample(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> VqaSample:
    """How the run makes training samples."""
    answers = {answer: number for number, answer in enumerate(answer_vocabulary(config))}
    return VqaSample(tokenizer, ImageTransform.of(config, training=True), config.max_text, answers=answers)


def answer_vocabulary(config: Stage1Config) -> list[str]:
    """The answers that a question head knows: those that the run has exported; else those of the first training set
    that lists any (sets mixed with it count as far as their answers are among these); else, without training data,
    those of `init_from`. Raises ConfigError where there are none."""
    if answers := answers_of_export(Path(config.output)):
        return answers
    for source in config.data.train:
        if listed := dataset_info(source.path).get("answers"):
            return list(listed)
    if not config.data.train and config.init_from is not None and (answers := answers_of_export(config.init_from)):
        return answers
    raise ConfigError(
        "data.train: none of the sets has an answer vocabulary in its dataset.json; make the shards with "
        "`fiber shards vqav2` (or another set of questions with --answers)"
    )


# ---------------------------------------------------------------------------------------------- what it computes


class VqaTask(CoarseTask):
    """Questions over a vocabulary of answers: binary cross-entropy with the soft targets of ten annotators, summed
    over answers (the release's mean times the number of answers) and averaged over questions."""

    def __init__(self, model: CoarseModel, answers: list[str], label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.answers, self.label_smoothing = model, list(answers), label_smoothing
        self.unused_parameters = (*UNUSED_WHEN_FUSED, *ends_of_towers(model))
        freeze(model, self.unused_parameters)

    def logits(self, batch: TextBatch) -> Tensor:
        """images (B,3,S,S) uint8, ids, mask (B,L) int64 -> (B,A) fp32, one sigmoid per answer."""
        return self.model.heads.classifiers["vqa"](fused(self.model, batch)).float()

    def forward(self, batch: TextBatch) -> Losses:
        """The above and targets (B,A) float32 in [0,1] -> losses, report. Accuracy: the target of the best answer."""
        logits, targets = self.logits(batch), batch["targets"]
        smooth = targets + self.label_smoothing * (1 / targets.shape[1] - targets)
        loss = F.binary_cross_entropy_with_logits(logits, smooth, reduction="sum") / len(logits)
        accuracy = targets.gather(1, logits.argmax(-1, keepdim=True)).mean()
        outside = batch["answers_outside"].float().mean()
        return {"vqa": loss}, report(self.model, "vqa", loss, accuracy) | {"answers/outside": outside}


def build_module(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> VqaTask:
    """The model with a question head, and its loss."""
    answers = answer_vocabulary(config)
    return VqaTask(build_model(config, tokenizer, {"vqa": len(answers)}), answers, config.finetune.label_smoothing)


# ---------------------------------------------------------------------------------------------- how it is scored


@dataclass(frozen=True)
class VqaScorer:
    """Official accuracy, by type of answer too, next to that of the most frequent answer (of all, and of each type
    of question); and the server's file. A set without answers (test) is only predicted."""

    task: VqaTask
    context: EvalContext
    name: ClassVar[str] = "vqa"
    key: ClassVar[tuple[str, ...]] = ("question_id",)

    def row(self, best: int, annotation: dict[str, Any]) -> Row:
        """What is written of a question: `best` is the class of the highest score."""
        return {"question_id": annotation["id"], "answer": self.task.answers[best]}

    def score(self, path: Path) -> Figures:
        """Figures of the rows in `path`."""
        context = self.context
        ids = (question["id"] for question in context.annotations())
        vqa_accuracy.write_submission(context.folder / "vqa_submission.json", ids, read_predictions(path))
        if "raw_answers" not in next(context.annotations()):
            return {"questions": context.shards.count(context.field)}
        scores = vqa_accuracy.evaluate(context.annotations(), read_predictions(path))
        by_type = {f"accuracy_{kind.replace('/', '_')}": value for kind, value in scores["answer_type"].items()}
        return {
            "accuracy": scores["accuracy"],
            "majority_accuracy": vqa_accuracy.majority_accuracy(context.annotations),
            "type_majority_accuracy": vqa_accuracy.majority_accuracy(context.annotations, "question_type"),
        } | by_type

    def show(self, annotation: dict[str, Any], row: Row) -> dict[str, str]:
        """The words to show next to an example's image."""
        given = Counter(annotation.get("raw_answers", ())).most_common(3)
        answers = ", ".join(f"{answer} ({n})" for answer, n in given)
        return {"question": annotation["question"], "answers": answers, "prediction": row["answer"]}


def evaluate(task: VqaTask, context: EvalContext) -> Figures:
    """Figures of one set."""
    return evaluate_classes(task, context, VqaScorer(task, context))


TASK = coarse_task(
    name="vqa",
    fields=("questions",),
    build_sample=build_sample,
    build_module=build_module,
    evaluate=partial(evaluate_sets, evaluate),
    flops=match_flops,
    sections=("finetune",),
    verbs={"answer": ("heads.classifiers.vqa.*",)},
    headline=("accuracy",),
)
