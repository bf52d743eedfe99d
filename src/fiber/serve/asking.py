"""What the page asks of a model: one image, a verb, a text; the answer as plain data."""

from __future__ import annotations

import base64
import dataclasses
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fiber.predict.base import TaskError
from fiber.predict.heat import word_heat
from fiber.predict.sources import open_image

SHOWN_VERBS = ("detect", "ground", "refer", "answer", "caption", "match")
NEEDS_TEXT = {"ground": "a sentence", "refer": "an expression", "answer": "a question", "match": "a text"}
MOST_TEXT = 2000  # characters


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
        answers: dict[str, Callable[[Path], dict[str, Any]]] = {
            "detect": lambda path: self._detect(path, text, threshold),
            "ground": lambda path: self._regions(self.predictor.ground(path, text, threshold=threshold)),
            "refer": lambda path: self._regions(self.predictor.refer(path, text)),
            "answer": lambda path: self._texts(self.predictor.answer(path, text)),
            "caption": lambda path: self._texts(self.predictor.caption(path)),
            "match": lambda path: self._match(path, text),
        }
        if verb not in answers:
            raise TaskError(f"nothing is called {verb[:40]!r} here; there are {', '.join(SHOWN_VERBS)}")
        self.predictor.require(verb)
        if verb in NEEDS_TEXT:
            _check_text(text, NEEDS_TEXT[verb])
        return self._with_file(image, answers[verb])

    def heat(self, text: str, image: bytes) -> dict[str, Any]:
        """What each word looked at: {"words": [{"word", "rows", "columns", "light": base64 of its bytes}]}."""
        _check_text(text, "a text")

        def look(path: Path) -> dict[str, Any]:
            return {"words": [_light(one.word, one.heat) for one in word_heat(self.predictor, path, text)]}

        return self._with_file(image, look)

    def _with_file(self, image: bytes, answer: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """The answer about an image file that exists only meanwhile; its size comes with it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image"
            path.write_bytes(image)
            try:
                opened = open_image(path)
                with self._lock:
                    found = answer(path)
            except ValueError as error:
                raise ValueError(str(error).replace(str(path), "the file")) from None
        return {"width": opened.width, "height": opened.height} | found

    def _detect(self, path: Path, text: str, threshold: float) -> dict[str, Any]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        return self._regions(self.predictor.detect(path, names or None, threshold=threshold))

    def _match(self, path: Path, text: str) -> dict[str, Any]:
        texts = [line.strip() for line in text.split(";") if line.strip()]
        found = [dataclasses.asdict(self.predictor.match(path, line)[0]) for line in texts]
        return {"matches": [{"text": line} | one for line, one in zip(texts, found, strict=True)]}

    def _regions(self, found: Sequence[Sequence[Any]]) -> dict[str, Any]:
        return {"regions": [_rounded(dataclasses.asdict(region)) for region in found[0]]}

    def _texts(self, found: Sequence[Sequence[Any]]) -> dict[str, Any]:
        return {"texts": [_rounded(dataclasses.asdict(one)) for one in found[0]]}


def _check_text(text: str, what: str) -> None:
    if not text.strip():
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
