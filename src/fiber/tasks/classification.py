"""Image classification: what the image tower has learned, by itself. A head over the pooled image is fine-tuned, with
the towers or alone (`tuning.mode`); without any training, the dual encoder chooses among the classes by prompts.

The data are records whose caption is the class name, and a set whose categories are the classes
(`fiber shards class_folders`).

Shape letters: B batch, S image side, H head width, K classes, P prompts per class.
"""

from collections import Counter
from collections.abc import Sequence
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
from fiber.data.records import Sample, annotation_text
from fiber.data.samples.text import ImageTransform, TextSample
from fiber.data.shards import dataset_info
from fiber.data.text import encode
from fiber.errors import ConfigError, SampleFault, ShardError
from fiber.evaluation.classes import evaluate_classes
from fiber.evaluation.context import EvalContext, evaluate_sets
from fiber.evaluation.predictions import Row, read_predictions
from fiber.tasks.classifier import freeze, majority, report
from fiber.tasks.coarse_model import CoarseTask, build_model, coarse_task, image_text_flops
from fiber.training.speed import FlopsPerSample
from fiber.training.task import Figures, Losses
from fiber.weights.export import answers_of_export

HEAD = "classification"
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image that shows a {}.", "{}.")
UNUSED = (
    "backbone.fusion.*",
    "backbone.text.*",
    "heads.cross_modal.*",
    "heads.contrastive.text_*",
    "heads.temperature.*",
    "heads.mlm.*",
    "heads.itm.*",
)
"""What a classifier of images alone never reaches; the zero-shot figure reads it as it is."""

# ---------------------------------------------------------------------------------------------- what it reads


@dataclass(frozen=True)
class ClassSample(TextSample):
    """An image with its class name as text: also labels (int), the position of the name among `names`, the classes of
    the head: sets that are trained on together may list theirs in another order."""

    names: Sequence[str] = field(kw_only=True)

    def __call__(self, sample: Sample, field: str, number: int, rng: np.random.Generator) -> dict[str, Any]:
        """Raises SampleFault("no_label") for a text that is no class of the head."""
        text = annotation_text(sample.record, field, number)
        if text not in self.names:
            raise SampleFault("no_label", f"{field}[{number}] {text!r} is none of the {len(self.names)} classes")
        return super().__call__(sample, field, number, rng) | {"labels": self.names.index(text)}


def build_sample(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> ClassSample:
    """How the run makes training samples."""
    names = class_names(config)
    return ClassSample(tokenizer, ImageTransform.of(config, training=True), config.max_text, names=names)


def class_names(config: Stage1Config) -> list[str]:
    """The classes: those that the run has exported, else those of its first set, training sets before evaluation
    sets. Raises ConfigError."""
    if names := answers_of_export(Path(config.output)):
        return names
    for source in (*config.data.train, *config.eval.data):
        if categories := dataset_info(source.path).get("categories"):
            return [category["name"] for category in sorted(categories, key=lambda category: category["id"])]
    raise ConfigError(
        "data.train: none of the sets lists categories in its dataset.json; make the shards with "
        "`fiber shards class_folders`"
    )


# ---------------------------------------------------------------------------------------------- what it computes


class ClassificationTask(CoarseTask):
    """Softmax cross-entropy over the classes of a set. `answers`: their names."""

    def __init__(self, model: CoarseModel, names: Sequence[str], label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.answers, self.label_smoothing = model, list(names), label_smoothing
        self.unused_parameters = UNUSED
        freeze(model, UNUSED)

    def logits(self, batch: TextBatch) -> Tensor:
        """images (B,3,S,S) -> (B,K) fp32."""
        tokens = self.model.backbone.finish_image(self.model.image_prefix(batch["images"]))
        pooled = self.model.heads.contrastive.image(tokens)[1]
        return self.model.heads.classifiers[HEAD](pooled).float()

    def forward(self, batch: TextBatch) -> Losses:
        """images (B,3,S,S), labels (B,) int64 -> losses, report."""
        logits, labels = self.logits(batch), batch["labels"]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        accuracy = (logits.argmax(-1) == labels).float().mean()
        figures = report(self.model, HEAD, loss, accuracy)
        return {HEAD: loss}, {name: value for name, value in figures.items() if not name.startswith("gate/")}


def build_module(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> ClassificationTask:
    """The model with a head over the pooled image, and its loss."""
    names = class_names(config)
    model = build_model(config, tokenizer, {HEAD: len(names)}, vectors={HEAD: 1})
    return ClassificationTask(model, names, config.finetune.label_smoothing)


def flops(config: Stage1Config, module: CoarseTask) -> FlopsPerSample | None:
    """The image tower to its end."""
    return image_text_flops(config, module, lambda cost: cost.image_prefix + cost.image_tail)


# ---------------------------------------------------------------------------------------------- how it is scored


@torch.no_grad()
def prompt_classifier(model: CoarseModel, names: Sequence[str], tokenizer: Any, max_text: int) -> Tensor:
    """Unit vectors of the classes (K,H): the mean of their prompts' contrastive features (Radford et al., 2021)."""
    device, rows = model.heads.itm.weight.device, []
    for name in names:
        encoded = [encode(tokenizer, template.format(name), max_text) for template in TEMPLATES]
        ids, mask = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*encoded, strict=True))
        rows.append(F.normalize(model.text_embedding(model.text_prefix(ids, mask)).mean(0), dim=-1))
    return torch.stack(rows)


@dataclass(frozen=True)
class BothWays:
    """The head's scores of the classes and those of their prompts (K,H), of one pass over the images."""

    task: ClassificationTask
    prompts: Tensor

    def logits(self, batch: TextBatch) -> Tensor:
        """images (B,3,S,S) -> (B,2,K): head, prompts."""
        model = self.task.model
        similarity = model.image_embedding(model.image_prefix(batch["images"])) @ self.prompts.T
        return torch.stack([self.task.logits(batch), similarity], dim=1)


def best_five(scores: Tensor) -> list[list[list[int]]]:
    """(B,2,K) -> the five best classes both ways, best first."""
    return scores.topk(min(5, scores.shape[-1])).indices.tolist()


@dataclass(frozen=True)
class ClassScorer:
    """Top-1 and top-5 accuracy of the head and, with `zero_shot_` before them, of prompts, next to the share of the
    most frequent class."""

    names: Sequence[str]
    name: ClassVar[str] = HEAD
    key: ClassVar[tuple[str, ...]] = ("position",)

    def row(self, best: Sequence[Sequence[int]], annotation: dict[str, Any]) -> Row:
        """What is written of an image: its class, and the best five of the head and of the prompts."""
        head, prompts = ([self.names[i] for i in order] for order in best)
        return {"class": annotation["text"], "head": head, "zero_shot": prompts}

    def score(self, path: Path) -> Figures:
        """Figures of the rows in `path`."""
        hits: Counter[str] = Counter()
        classes: Counter[str] = Counter()
        for row in read_predictions(path):
            classes[row["class"]] += 1
            for prefix, order in (("", row["head"]), ("zero_shot_", row["zero_shot"])):
                hits[f"{prefix}top1"] += order[0] == row["class"]
                hits[f"{prefix}top5"] += row["class"] in order
        total = classes.total()
        figures = {
            f"{prefix}{k}": hits[f"{prefix}{k}"] / total for prefix in ("", "zero_shot_") for k in ("top1", "top5")
        }
        return figures | {"majority_top1": majority(classes), "images": total}

    def show(self, annotation: dict[str, Any], row: Row) -> dict[str, str]:
        """The words to show next to an example's image."""
        return {"class": row["class"], "head": row["head"][0], "zero-shot": row["zero_shot"][0]}


def evaluate(task: ClassificationTask, context: EvalContext) -> Figures:
    """Figures of one set. Raises ShardError where its classes are not those of the head."""
    if sorted(context.shards.facts.names) != sorted(task.answers):  # in any order: rows hold names
        raise ShardError(f"{context.shards.where}: its classes are not those that the head was trained on")
    prompts = prompt_classifier(task.model, task.answers, context.tokenizer, context.config.max_text)
    scorer = ClassScorer(task.answers)
    return evaluate_classes(BothWays(task, prompts), context, scorer, choose=best_five)


TASK = coarse_task(
    name="classification",
    verbs={"classify": ("heads.classifiers.classification.*", "heads.contrastive.image_*")},
    fields=("captions",),
    build_sample=build_sample,
    build_module=build_module,
    evaluate=partial(evaluate_sets, evaluate),
    flops=flops,
    sections=("finetune",),
    headline=("top1", "top5"),
)
