"""What the page asks of a model: one image, a verb, a text; the answer as plain data."""

from __future__ import annotations

import base64
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fiber.predict.base import TaskError
from fiber.predict.heat import word_heat
from fiber.predict.phrases import class_names
from fiber.predict.sources import InputImage, Prepared, decode_image

SHOWN_VERBS = ("detect", "ground", "refer", "answer", "caption", "match")
NEEDS_TEXT = {"ground": "a sentence", "refer": "an expression", "answer": "a question", "match": "a text"}
MOST_TEXT = 2000  # characters
MOST_CLASSES = 200  # of detection: each fills a part of a prompt
MOST_MATCHES = 20  # texts of one image


class Asking:
    """One model, asked by one request at a time: its answers would not come sooner side by side."""

    def __init__(self, predictor: Any, name: str) -> None:
        self.predictor, self.name, self._lock = predictor, name, threading.Lock()

    def about(self) -> dict[str, Any]:
        """What the page shows before anything is asked."""
        verbs = [verb for verb in SHOWN_VERBS if verb in self.predictor.tasks]
        # The score that a detector was calibrated to.
        threshold = self.predictor.threshold if "detect" in verbs else None
        about = {"name": self.name, "verbs": verbs, "categories": list(self.predictor.categories)}
        return about | {"threshold": threshold}

    def ask(self, verb: str, text: str, threshold: float, image: bytes) -> dict[str, Any]:
        """What `verb` finds in an image file. Raises ValueError (an image that cannot be read, a text that is missing
        or too long) and TaskError, whose messages are for the user."""
        answers: dict[str, Callable[[Prepared], dict[str, Any]]] = {
            "detect": lambda image: self._detect(image, text, threshold),
            "ground": lambda image: self._regions(self.predictor.ground(image, text, threshold=threshold)),
            "refer": lambda image: self._regions(self.predictor.refer(image, text)),
            "answer": lambda image: self._texts(self.predictor.answer(image, text)),
            "caption": lambda image: self._texts(self.predictor.caption(image)),
            "match": lambda image: self._match(image, text),
        }
        if verb not in answers:
            raise TaskError(f"nothing is called {verb[:40]!r} here; there are {', '.join(SHOWN_VERBS)}")
        self.predictor.require(verb)
        _check_text(text, NEEDS_TEXT.get(verb))
        return self._decoded(image, lambda opened: answers[verb](self.predictor.prepare(opened)))

    def heat(self, text: str, image: bytes) -> dict[str, Any]:
        """What each word looked at: {"words": [{"word", "rows", "columns", "light": base64 of its bytes}]}."""
        _check_text(text, "a text")

        def look(opened: InputImage) -> dict[str, Any]:
            words = [_light(one.word, one.heat) for one in word_heat(self.predictor, opened, text)]
            _check_text(" ".join(one["word"] for one in words), "a text")  # there were only signs
            return {"words": words}

        return self._decoded(image, look)

    def _decoded(self, image: bytes, answer: Callable[[InputImage], dict[str, Any]]) -> dict[str, Any]:
        """The answer about an image, with its size. Decoded once, and one at a time: that may take gigabytes."""
        with self._lock:
            opened = decode_image(image, "the file")
            return {"width": opened.width, "height": opened.height} | answer(opened)

    def _detect(self, image: Prepared, text: str, threshold: float) -> dict[str, Any]:
        names = _at_most(MOST_CLASSES, class_names(text), "classes")
        return self._regions(self.predictor.detect(image, names or None, threshold=threshold))

    def _match(self, image: Prepared, text: str) -> dict[str, Any]:
        texts = _at_most(MOST_MATCHES, [part.strip() for part in text.split(";") if part.strip()], "texts")
        _check_text(" ".join(texts), "a text")
        found = [dataclasses.asdict(self.predictor.match(image, line)[0]) for line in texts]
        return {"matches": [{"text": line} | one for line, one in zip(texts, found, strict=True)]}

    def _regions(self, found: Sequence[Sequence[Any]]) -> dict[str, Any]:
        return {"regions": [_rounded(dataclasses.asdict(region)) for region in found[0]]}

    def _texts(self, found: Sequence[Sequence[Any]]) -> dict[str, Any]:
        return {"texts": [_rounded(dataclasses.asdict(one)) for one in found[0]]}


def _at_most(most: int, texts: list[str], what: str) -> list[str]:
    if len(texts) > most:
        raise ValueError(f"{len(texts):,} {what}, {most} are allowed")
    return texts


def _check_text(text: str, what: str | None) -> None:
    """Raises ValueError for a text that is too long, or missing (`what`: it is needed)."""
    if what is not None and not text.strip():
        raise ValueError(f"write {what} first")
    if len(text) > MOST_TEXT:
        raise ValueError(f"the text has {len(text):,} characters, {MOST_TEXT:,} are allowed")


def _rounded(found: Mapping[str, Any]) -> dict[str, Any]:
    digits = {"score": 4, "probability": 4}
    out = {key: round(value, digits[key]) if key in digits else value for key, value in found.items()}
    return out | ({"box": [round(x, 1) for x in found["box"]]} if "box" in found else {})


def _light(word: str, heat: np.ndarray) -> dict[str, Any]:
    spread = heat.max() - heat.min()
    scaled = (255 * (heat - heat.min()) / spread if spread > 0 else np.full_like(heat, 255)).astype(np.uint8)
    rows, columns = heat.shape
    return {"word": word, "rows": rows, "columns": columns, "light": base64.b64encode(scaled.tobytes()).decode()}
