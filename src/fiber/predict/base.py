"""What predictors at both levels share."""

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import filter as matching
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fiber.data.text import LONGEST_TOKEN
from fiber.errors import KnownError
from fiber.predict.sources import ImageError, ImageFile, ImageSource, InputImage, Prepared, open_image
from fiber.predict.stream import in_groups, load_ahead
from fiber.tasks.table import TABLE
from fiber.weights.export import Export

VERBS = ("match", "retrieve", "caption", "answer", "embed", "classify", "ground", "refer", "detect")
"""The methods of predictors, in the order in which they are told."""


class TaskError(KnownError, AttributeError):
    """A task that this model cannot do; the message says which it can."""


def verbs_of(export: Export, model: nn.Module) -> tuple[str, ...]:
    """What a model can do, as the tasks' rows have it: a verb is offered where the file has all its parts and, as far
    as that is recorded, they were trained for it."""
    names = model.state_dict()

    def has(pattern: str) -> bool:
        # A part of the backbone that this architecture does not have at all (caption maps of a one-stage fusion) is
        # not missing.
        missing_by_design = pattern.startswith("backbone.") and not matching(names, pattern)
        return bool(matching(export.tensors, pattern)) or missing_by_design

    known = export.config.trained
    offered = {
        verb
        for row in TABLE
        if row.stage == export.config.stage and (not known or row.name in known)
        for verb, patterns in row.verbs.items()
        if all(map(has, patterns))
    }
    return tuple(verb for verb in VERBS if verb in offered)


Found = TypeVar("Found")


class Predictor(ABC):
    """What both levels share: the model, its tokenizer, the tasks it can do, and how images come to it.

    batch: images computed at a time; halved by itself where a card has too little memory. workers: threads that
    decode (default: one per core, 16 at most).
    """

    def __init__(self, model: nn.Module, export: Export, device: torch.device) -> None:
        self.model, self.device, self.config = model, device, export.config
        self.tokenizer, self.answers, self.categories = export.tokenizer, export.answers, export.categories
        self.tasks = verbs_of(export, model)
        self.batch = 64 if device.type == "cuda" else 16
        self.workers: int | None = None
        self._said_cut = False

    if not TYPE_CHECKING:  # a type checker would take every name for one that is there

        def __getattr__(self, name: str) -> Any:
            if name in VERBS:
                self.require(name)
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def require(self, task: str) -> None:
        """Raises TaskError unless the model can do `task`."""
        if task not in self.tasks:
            level = "image" if self.config.stage == "coarse" else "region"
            raise TaskError(f"this model (at {level} level) cannot {task}; it can: {', '.join(self.tasks)}")

    def say_cut(self, text: str) -> None:
        """Say once on stderr that a text is longer than the model reads."""
        limit = self.config.max_text
        if self._said_cut or len(text.encode()) <= limit - 2:  # a token has a byte at least
            return
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        if len(backend.encode(text[: LONGEST_TOKEN * limit]).ids) > limit:
            self._said_cut = True
            print(
                f"a text has more than the {limit} tokens that this model reads: its end is left out", file=sys.stderr
            )

    def prepare(self, source: ImageSource) -> Prepared:
        """An image read, decoded and resized for this model. Every method takes such an image, too. Raises
        ImageError."""
        if isinstance(source, Prepared):
            return source
        image = open_image(source)
        return Prepared(self._pixels(image.image), image.width, image.height, image.name)

    @abstractmethod
    def _pixels(self, image: Image.Image) -> Tensor:
        """Upright RGB -> uint8 (3,h,w) in the size that the model reads."""

    def stream(self, files: Iterable[ImageFile]) -> Iterator[tuple[ImageFile, Prepared | ImageError]]:
        """Every file prepared, or why it cannot be read, in order; the next two batches are decoded meanwhile."""
        return load_ahead(files, self.prepare, 2 * self.batch, self.workers)

    def fingerprint(self, *patterns: str) -> str:
        """A name for the weights that fit `patterns` (default: all) and the size of images: what results depend
        on."""
        digest = hashlib.sha256(str((self.config.image_size, self.config.max_image_size)).encode())
        for name, tensor in self.model.state_dict().items():
            if not patterns or any(matching([name], pattern) for pattern in patterns):
                digest.update(name.encode() + tensor.double().sum().cpu().numpy().tobytes())
        return digest.hexdigest()

    def _each(
        self, images: ImageSource | Iterable[ImageSource], compute: Callable[[list[Prepared]], Sequence[Found]]
    ) -> list[Found]:
        """What `compute` finds in each image, `batch` images at a time. Raises ImageError."""
        found: list[Found] = []
        for group in in_groups(load_ahead(many(images), self.prepare, 2 * self.batch, self.workers), self.batch):
            if faults := [image for _, image in group if isinstance(image, ImageError)]:
                raise faults[0]
            found += self.fitting([image for _, image in group if isinstance(image, Prepared)], compute)
        return found

    def fitting(
        self, images: list[Prepared], compute: Callable[[list[Prepared]], Sequence[Found]]
    ) -> Sequence[Found]:
        """`compute` of the images together or, where the card's memory does not hold them, of fewer at a time."""
        try:
            return compute(images)
        except torch.cuda.OutOfMemoryError:
            if len(images) == 1:
                raise
        torch.cuda.empty_cache()
        self.batch = len(images) // 2
        halves = images[: self.batch], images[self.batch :]
        return [found for half in halves for found in self.fitting(half, compute)]


def at_least(name: str, value: int, least: int) -> None:
    """Raises ValueError for a number of results below `least`."""
    if value < least:
        raise ValueError(f"{name} {value} is below {least}")


def share(name: str, value: float) -> None:
    """Raises ValueError for a threshold outside of 0..1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} {value} is not in 0..1")


def listed(name: str, texts: Iterable[str]) -> list[str]:
    """Several texts as a list. Raises ValueError for one text alone, which would be taken letter by letter."""
    if isinstance(texts, str):
        raise ValueError(f"{name} is a list of texts, not one: [{texts!r:.60}]")
    return list(texts)


def many(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """One image or several as several."""
    one = isinstance(images, str | Path | ImageFile | InputImage | Image.Image | np.ndarray | Prepared)
    return [images] if one else images  # type: ignore[list-item, return-value]
