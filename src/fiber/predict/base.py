"""What predictors at both levels share."""

from collections.abc import Sequence
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fiber.predict.sources import ImageSource
from fiber.weights.export import Export
from fiber.weights.from_export import OPTIONAL

NEEDS = {
    "match": ("cross_modal", "itm"),
    "retrieve": ("contrastive",),
    "caption": ("cross_modal", "mlm", "caption_maps"),
}


TASKS = ("match", "retrieve", "caption", "answer", "ground", "refer", "detect")


class TaskError(AttributeError):
    """A task that this model cannot do; the message says which it can."""


def tasks_of(export: Export, model: nn.Module) -> tuple[str, ...]:
    """The tasks that a model has all parts for."""
    if export.config.stage == "fine":
        return "ground", "refer", "detect"
    names = model.state_dict()
    # A part that this architecture does not have at all (caption maps of a one-stage fusion) is not missing.
    absent = {
        p for p, pattern in OPTIONAL.items() if matching(names, pattern) and not matching(export.tensors, pattern)
    }
    tasks = [task for task, parts in NEEDS.items() if not absent & set(parts)]
    return (*tasks, "answer") if "vqa" in export.config.classifiers else tuple(tasks)


class Predictor:
    """What both levels share: the model, its tokenizer, the tasks it can do."""

    def __init__(self, model: nn.Module, export: Export, device: torch.device) -> None:
        self.model, self.device, self.config = model, device, export.config
        self.tokenizer, self.answers, self.categories = export.tokenizer, export.answers, export.categories
        self.tasks = tasks_of(export, model)

    def __getattr__(self, name: str) -> Any:
        if name in TASKS:
            self.require(name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def require(self, task: str) -> None:
        """Raises TaskError unless the model can do `task`."""
        if task not in self.tasks:
            level = "image" if self.config.stage == "coarse" else "region"
            raise TaskError(f"this model (at {level} level) cannot {task}; it can: {', '.join(self.tasks)}")


def many(images: ImageSource | Sequence[ImageSource]) -> Sequence[ImageSource]:
    one = isinstance(images, str | Path | Image.Image | np.ndarray)
    return [images] if one else images
