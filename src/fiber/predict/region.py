"""A model at region level on one's own images: grounding, referring expressions, detection."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fiber.data.prompts import Prompt, PromptBuilder
from fiber.fine.inference import Query, fit, run_queries
from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import DETECTION, REFERRING, BoxSelection, Detections
from fiber.predict.base import Predictor, many
from fiber.predict.phrases import Span, find_phrases
from fiber.predict.sources import ImageSource, open_image
from fiber.weights.export import Export

PAIRS = 8  # (image, prompt) pairs computed at a time


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
        images: ImageSource | Sequence[ImageSource],
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
        for found in self._detect(images, [prompt], REFERRING):
            own = []
            for label, span in enumerate(spans):
                own += self._regions(found, sentence[slice(*span)], span, found.labels == label)[:top]
            results.append([region for region in own if region.score >= threshold])
        return results

    def refer(self, images: ImageSource | Sequence[ImageSource], expression: str, top: int = 1) -> list[list[Region]]:
        """The `top` regions for an expression that refers to one object."""
        self.require("refer")
        prompt = self.prompts.sentence(expression, [[(0, len(expression))]])
        if not prompt.token_map.any(1).all():
            raise ValueError("the expression is empty")
        return [self._regions(found, expression)[:top] for found in self._detect(images, [prompt], REFERRING)]

    def detect(
        self,
        images: ImageSource | Sequence[ImageSource],
        classes: Sequence[str] | None = None,
        threshold: float = 0.3,
        keep: int = 100,
        chunk_classes: int | None = None,
    ) -> list[list[Region]]:
        """Objects of `classes` (any names; default: those the model was trained on) with a score of at least
        `threshold`, best first. Lists too long for one prompt, or longer than `chunk_classes`, are asked in several.

        Words of a prompt see each other, so classes are always asked in one order, however they are given: those the
        model was trained on in theirs, then the others by name.
        """
        self.require("detect")
        place = {name: number for number, name in enumerate(self.categories)}
        names = sorted(set(classes or self.categories), key=lambda name: (place.get(name, len(place)), name))
        if not names:
            raise ValueError("this export lists no categories: say which classes to look for")
        results = []
        for found in self._detect(images, self.prompts.chunks(names, chunk_classes), DETECTION, keep):
            rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
            results.append([Region(box, score, names[label]) for box, score, label in rows if score >= threshold])
        return results

    def _detect(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompts: list[Prompt],
        selection: BoxSelection,
        keep: int | None = None,
    ) -> list[Detections]:
        """Detections in pixels of the originals, best first; as many images as pairs are computed at a time."""
        results, sources, text = [], many(images), self.model.encode_prompts(prompts)
        longest = self.config.max_image_size or 2 * self.config.image_size
        for start in range(0, len(sources), PAIRS):
            opened = [open_image(source) for source in sources[start : start + PAIRS]]
            searches = [
                Query(
                    fit(np.asarray(image.image), self.config.image_size, longest),
                    (image.width, image.height),
                    prompts,
                )
                for image in opened
            ]
            results += run_queries(self.model, searches, selection, keep=keep, pairs=PAIRS, text=text)
        return results

    def _regions(
        self, found: Detections, label: str, span: Span | None = None, rows: Tensor | slice = slice(None)
    ) -> list[Region]:
        pairs = zip(found.boxes[rows].tolist(), found.scores[rows].tolist(), strict=True)
        return [Region(box, score, label, span) for box, score in pairs]
