"""What the tasks with a class for an answer share: the fused features that their heads read, the parts of the model
that they leave unused, samples with a label, and softmax cross-entropy.

Shape letters: B batch, L text length, S image side, H head width, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from fiber.coarse.model import CoarseModel
from fiber.data.batches import TextBatch
from fiber.data.records import Sample, annotation
from fiber.data.samples.text import TextSample
from fiber.errors import SampleFault
from fiber.tasks.coarse_model import CoarseTask
from fiber.training.task import Losses

UNFUSED_HEADS = ("heads.contrastive.*", "heads.temperature.*")
UNUSED_WHEN_FUSED = ("backbone.fusion.caption_maps.*", "heads.mlm.*", "heads.itm.*", *UNFUSED_HEADS)
"""What a classifier of fused pairs never reaches, besides `ends_of_towers`."""


def ends_of_towers(model: CoarseModel) -> tuple[str, ...]:
    """The norms that end the unfused towers; a fused pass goes without."""
    return "backbone.image.norm.*", f"backbone.text.layers.{len(model.backbone.text.layers) - 1}.norm2.*"


def freeze(model: CoarseModel, patterns: Sequence[str]) -> None:
    """Freeze the parameters of `model` whose names fit a pattern (`heads.mlm.*`): those that a task never reaches.

    Left trainable, weight decay would shrink them at the ZeRO stages that keep a gradient of zeros for them, and not
    at the others.
    """
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)


def fused(model: CoarseModel, batch: TextBatch) -> Tensor:
    """images (B,3,S,S), ids and mask (B,L) -> (B,2H)."""
    return model.fuse(model.image_prefix(batch["images"]), model.text_prefix(batch["ids"], batch["mask"])).cls


def fused_pair(model: CoarseModel, batch: TextBatch) -> Tensor:
    """images (B,2,3,S,S), ids and mask (B,L) -> (B,4H): first image, second image. The text is encoded once."""
    images = model.image_prefix(batch["images"].flatten(0, 1))  # in turns: first, second, first, ...
    texts = model.text_prefix(batch["ids"], batch["mask"]).repeat_interleave(2)
    return model.fuse(images, texts).cls.unflatten(0, (-1, 2)).flatten(1)


def report(model: CoarseModel, name: str, loss: Tensor, accuracy: Tensor) -> dict[str, Tensor]:
    """The detached loss and accuracy of an objective, and the gates of the fusion."""
    figures = {f"loss/{name}": loss, f"accuracy/{name}": accuracy}
    return {name: value.detach() for name, value in figures.items()} | model.backbone.gates()


@dataclass(frozen=True)
class LabelledSample(TextSample):
    """A text and its image or pair, with labels (int): the position of the annotation's label in `classes`."""

    classes: tuple[Any, ...] = field(kw_only=True)

    def __call__(self, sample: Sample, field: str, number: int, rng: np.random.Generator) -> dict[str, Any]:
        """Raises SampleFault("no_label") for a label that is no class."""
        label = annotation(sample.record, field, number).get("label")
        if label not in self.classes:
            raise SampleFault("no_label", f"{field}[{number}] has the label {label!r}, not one of {self.classes}")
        return super().__call__(sample, field, number, rng) | {"labels": self.classes.index(label)}


class ClassifyTask(CoarseTask):
    """One class per text and its image, or its pair of images: softmax cross-entropy. `head`: the classifier of the
    model."""

    def __init__(self, model: CoarseModel, head: str, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.head, self.label_smoothing = model, head, label_smoothing
        self.unused_parameters = (*UNUSED_WHEN_FUSED, *ends_of_towers(model))
        freeze(model, self.unused_parameters)

    def logits(self, batch: TextBatch) -> Tensor:
        """images (B,3,S,S), or (B,2,3,S,S) of pairs, ids and mask (B,L) -> (B,K) fp32."""
        features = fused_pair if batch["images"].ndim == 5 else fused
        return self.model.heads.classifiers[self.head](features(self.model, batch)).float()

    def forward(self, batch: TextBatch) -> Losses:
        """The above and labels (B,) int64 -> losses, report."""
        logits, labels = self.logits(batch), batch["labels"]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return {self.head: loss}, report(self.model, self.head, loss, accuracy)


def majority(counts: Mapping[Any, int]) -> float:
    """The share of the most frequent class: what can be had without looking."""
    return max(counts.values()) / sum(counts.values())
