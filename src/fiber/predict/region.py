"""A model at region level on one's own images: grounding, referring expressions, detection."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fiber.data.prompts import Prompt, PromptBuilder
from fiber.fine.inference import Query, fit, run_queries
from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import DETECTION, REFERRING, BoxSelection, Detections
from fiber.predict.base import Predictor, at_least, listed, share
from fiber.predict.phrases import Span, find_phrases
from fiber.predict.sources import ImageSource, Prepared
from fiber.processor import nms
from fiber.weights.export import Export

PAIRS = 8  # (image, prompt) pairs computed at a time
OVERLAP = 0.6  # IoU above which two boxes stand on one place
THRESHOLD = 0.3  # of detection, where the export has none that was calibrated


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
        self.batch = 2 * PAIRS  # images of one size are computed together: some more than fit one pass

    def ground(
        self,
        images: ImageSource | Iterable[ImageSource],
        sentence: str,
        phrases: Sequence[str] | None = None,
        top: int = 1,
        threshold: float = 0.0,
    ) -> list[list[Region]]:
        """The `top` regions of each phrase of a sentence. Phrases: given, or marked in the sentence with [brackets],
        or found by `noun_phrases`."""
        self.require("ground")
        at_least("top", top, 1)
        share("threshold", threshold)
        sentence, spans = find_phrases(sentence, None if phrases is None else listed("phrases", phrases))
        prompt = self.prompts.sentence(sentence, [[span] for span in spans])
        if not prompt.token_map.any(1).all():
            places = zip(spans, prompt.token_map.any(1).tolist(), strict=True)
            lost = next(sentence[slice(*span)] for span, there in places if not there)
            limit = self.config.max_text
            raise ValueError(f"phrase {lost!r}: the sentence is longer than the {limit} tokens that this model reads")
        results = []
        for found in self._detect(images, [prompt], REFERRING):
            own = []
            for label, span in enumerate(spans):
                own += self._regions(found, sentence[slice(*span)], span, found.labels == label)[:top]
            results.append([region for region in own if region.score >= threshold])
        return results

    def refer(self, images: ImageSource | Iterable[ImageSource], expression: str, top: int = 1) -> list[list[Region]]:
        """The `top` regions for an expression that refers to one object."""
        self.require("refer")
        at_least("top", top, 1)
        self.say_cut(expression)
        prompt = self.prompts.sentence(expression, [[(0, len(expression))]])
        if not prompt.token_map.any(1).all():
            raise ValueError("the expression is empty")
        return [self._regions(found, expression)[:top] for found in self._detect(images, [prompt], REFERRING)]

    def detect(
        self,
        images: ImageSource | Iterable[ImageSource],
        classes: Sequence[str] | None = None,
        threshold: float | None = None,
        keep: int = 100,
        chunk_classes: int | None = None,
        all_labels: bool = False,
    ) -> list[list[Region]]:
        """Objects of `classes` (any names; default: those the model was trained on) with a score of at least
        `threshold` (default: the one calibrated at the end of training, else 0.3), best first. Lists too long for one
        prompt, or longer than `chunk_classes`, are asked in several.

        A place has one label, its best: of boxes with an IoU above 0.6 only the first is kept, unless `all_labels`.
        """
        self.require("detect")
        at_least("keep", keep, 1)
        names = self.class_order(classes)
        least = self.threshold if threshold is None else threshold
        share("threshold", least)
        results = []
        for found in self._detect(images, self.prompts.chunks(names, chunk_classes), DETECTION, keep * all_labels):
            if not all_labels:
                best = nms(found.boxes, found.scores, OVERLAP)[:keep]
                found = Detections(found.boxes[best], found.scores[best], found.labels[best])
            rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
            results.append([Region(box, score, names[label]) for box, score, label in rows if score >= least])
        return results

    @property
    def threshold(self) -> float:
        """The least score of a detection: calibrated where the export says so."""
        return float(getattr(self.config, "thresholds", {}).get("detect", THRESHOLD))

    def class_order(self, classes: Sequence[str] | None) -> list[str]:
        """The classes in the order in which they are asked for, each once. Words of a prompt see each other, so it is
        always the same, however the classes are given: those the model was trained on in theirs, then the others by
        name. Raises ValueError where there are none."""
        place = {name: number for number, name in enumerate(self.categories)}
        names = sorted(
            set(listed("classes", classes or self.categories)), key=lambda name: (place.get(name, len(place)), name)
        )
        if not names:
            raise ValueError("this export lists no categories: say which classes to look for")
        return names

    def _detect(
        self,
        images: ImageSource | Iterable[ImageSource],
        prompts: list[Prompt],
        selection: BoxSelection,
        keep: int = 0,
    ) -> list[Detections]:
        """Detections in pixels of the originals, best first, `keep` at most (0: all)."""
        text = self.model.encode_prompts(prompts)

        def compute(images: list[Prepared]) -> list[Detections]:
            queries = [Query(image.pixels, (image.width, image.height), prompts) for image in images]
            return run_queries(self.model, queries, selection, keep=keep or None, pairs=PAIRS, text=text)

        return self._each(images, compute)

    def _pixels(self, image: Image.Image) -> Tensor:
        longest = self.config.max_image_size or 2 * self.config.image_size
        return fit(np.asarray(image), self.config.image_size, longest)

    def _regions(
        self, found: Detections, label: str, span: Span | None = None, rows: Tensor | slice = slice(None)
    ) -> list[Region]:
        pairs = zip(found.boxes[rows].tolist(), found.scores[rows].tolist(), strict=True)
        return [Region(box, score, label, span) for box, score in pairs]
