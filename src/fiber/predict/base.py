"""What predictors at both levels share."""

from collections.abc import Sequence
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fiber.errors import KnownError
from fiber.predict.sources import ImageSource
from fiber.tasks.table import TABLE
from fiber.weights.export import Export

VERBS = ("match", "retrieve", "caption", "answer", "ground", "refer", "detect")
"""The methods of predictors, in the order in which they are told."""


class TaskError(KnownError, AttributeError):
    """A task that this model cannot do; the message says which it can."""


def verbs_of(export: Export, model: nn.Module) -> tuple[str, ...]:
    """What a model can do, as the tasks' rows have it: a verb is offered where the file has all its parts."""
    names = model.state_dict()

    def has(pattern: str) -> bool:
        # A part of the backbone that this architecture does not have at all (caption maps of a one-stage fusion) is
        # not missing.
        missing_by_design = pattern.startswith("backbone.") and not matching(names, pattern)
        return bool(matching(export.tensors, pattern)) or missing_by_design

    offered = {
        verb
        for row in TABLE
        if row.stage == export.config.stage
        for verb, patterns in row.verbs.items()
        if all(map(has, patterns))
    }
    return tuple(verb for verb in VERBS if verb in offered)


class Predictor:
    """What both levels share: the model, its tokenizer, the tasks it can do."""

    def __init__(self, model: nn.Module, export: Export, device: torch.device) -> None:
        self.model, self.device, self.config = model, device, export.config
        self.tokenizer, self.answers, self.categories = export.tokenizer, export.answers, export.categories
        self.tasks = verbs_of(export, model)

    def __getattr__(self, name: str) -> Any:
        if name in VERBS:
            self.require(name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def require(self, task: str) -> None:
        """Raises TaskError unless the model can do `task`."""
        if task not in self.tasks:
            level = "image" if self.config.stage == "coarse" else "region"
            raise TaskError(f"this model (at {level} level) cannot {task}; it can: {', '.join(self.tasks)}")


def many(images: ImageSource | Sequence[ImageSource]) -> Sequence[ImageSource]:
    """One image or several as several."""
    return [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else images
