"""A model at region level on one's own pictures: grounding, referring expressions, detection. See `fiber.predict`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import DETECTION, GROUNDING, Detections, Selection
from fiber.fine.prompts import Prompt, PromptBuilder
from fiber.fine.samples import fitted, pad_images, resize
from fiber.phrases import Span, find_phrases
from fiber.pictures import Source, open_picture
from fiber.predict import Predictor, many
from fiber.weights.export import Export


@dataclass(frozen=True)
class Region:
    """A box [x0, y0, x1, y1] (px of the upright original), its score (0..1), what it shows, and, in a grounded
    sentence, the characters [start, end) of that phrase."""

    box: list[float]
    score: float
    label: str
    span: Span | None = None


class FinePredictor(Predictor):
    """Use of a model at region level."""

    model: FiberDetector

    def __init__(self, model: FiberDetector, export: Export, device: torch.device) -> None:
        super().__init__(model, export, device)
        self.prompts = PromptBuilder(self.tokenizer, self.config.max_text)

    def ground(
        self,
        pictures: Source | Sequence[Source],
        sentence: str,
        phrases: Sequence[str] | None = None,
        top: int = 1,
        threshold: float = 0.0,
    ) -> list[list[Region]]:
        """The `top` regions of each phrase of a sentence. Phrases: given, or marked in the sentence with [brackets],
        or found by `noun_phrases`."""
        self.require("ground")
        sentence, spans = find_phrases(sentence, phrases)
        prompt = self.prompts.sentence(sentence, [[span] for span in spans])
        if not prompt.token_map.any(1).all():
            raise ValueError(f"the sentence is longer than the {self.config.max_text} tokens that this model reads")
        results = []
        for found in self._detect(pictures, [prompt], GROUNDING):
            own = []
            for label, span in enumerate(spans):
                own += self._regions(found, sentence[slice(*span)], span, found.labels == label)[:top]
            results.append([region for region in own if region.score >= threshold])
        return results

    def refer(self, pictures: Source | Sequence[Source], expression: str, top: int = 1) -> list[list[Region]]:
        """The `top` regions for an expression that refers to one object."""
        self.require("refer")
        prompt = self.prompts.sentence(expression, [[(0, len(expression))]])
        if not prompt.token_map.any(1).all():
            raise ValueError("the expression is empty")
        return [self._regions(found, expression)[:top] for found in self._detect(pictures, [prompt], GROUNDING)]

    def detect(
        self,
        pictures: Source | Sequence[Source],
        classes: Sequence[str] | None = None,
        threshold: float = 0.3,
        keep: int = 100,
    ) -> list[list[Region]]:
        """Objects of `classes` (any names; default: those the model was trained on) with a score of at least
        `threshold`, best first. Lists too long for one prompt are asked in several."""
        self.require("detect")
        names = list(classes or self.categories)
        if not names:
            raise ValueError("this export lists no categories: say which classes to look for")
        results = []
        for found in self._detect(pictures, self.prompts.chunks(names), DETECTION, keep):
            rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
            results.append([Region(box, score, names[label]) for box, score, label in rows if score >= threshold])
        return results

    def _detect(
        self,
        pictures: Source | Sequence[Source],
        prompts: list[Prompt],
        selection: Selection,
        keep: int | None = None,
    ) -> list[Detections]:
        """Detections on the CPU in pixels of the originals, best first. One picture at a time: sizes differ, and
        padding them to each other would cost more than it saves."""
        results = []
        for source in many(pictures):
            picture = open_picture(source)
            width, height = fitted(*picture.image.size, self.config.image_size, self.config.max_image_size)
            images, size = pad_images([resize(np.asarray(picture.image), width, height)])
            images, size = images.to(self.device), size.to(self.device)
            (found,) = self.model.detect(images, size, [prompts], selection, keep=keep)
            scale = torch.tensor([picture.width / width, picture.height / height] * 2)
            boxes = found.boxes.float().cpu() * scale
            results.append(Detections(boxes, found.scores.float().cpu(), found.labels.cpu()))
        return results

    def _regions(
        self, found: Detections, label: str, span: Span | None = None, rows: Tensor | slice = slice(None)
    ) -> list[Region]:
        pairs = zip(found.boxes[rows].tolist(), found.scores[rows].tolist(), strict=True)
        return [Region(box, score, label, span) for box, score in pairs]
