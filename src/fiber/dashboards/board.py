"""What a dashboard gets of a run, and what it is told at the start. Rank 0 only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class About:
    """What a run is, for those who compare many: `group` has the runs that start from one another, `job_type` is the
    task, `figures` are those that its evaluations are judged by, best first, higher is better; `environment` is plain
    data (world, card, parameters, data sets with fingerprints, parent run)."""

    group: str = ""
    job_type: str = ""
    tags: Sequence[str] = ()
    figures: Sequence[str] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExampleImage:
    """An evaluated image: `path` of the PNG, which has everything drawn into it; `texts` to show beside it; where
    regions are known, `clean`, the image alone, and `regions` in its pixels: {"box": [x0, y0, x1, y1], "label",
    "kind": "found" or "true", "score" of a found one}."""

    path: Path
    texts: Mapping[str, str]
    clean: Path | None = None
    regions: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def read(cls, path: Path) -> ExampleImage:
        """Of a PNG and the JSON file beside it of the same name, if there is one: `{column: text}`, whose "regions"
        are a list and stand in pixels of the .jpg of that name."""
        file, clean = path.with_suffix(".json"), path.with_suffix(".jpg")
        texts = json.loads(file.read_text()) if file.exists() else {}
        regions = texts.pop("regions", ())
        return cls(path, texts, clean if clean.exists() else None, regions)


class Board(Protocol):
    """A dashboard. A call that fails ends it, never the run (`training.tracking`)."""

    def log(self, step: int, metrics: Mapping[str, float], best: Sequence[str] = ()) -> None:
        """Metrics after update `step` (0-based), each in a section; `best`: those whose highest value counts."""

    def images(self, step: int, images: Sequence[ExampleImage]) -> None:
        """Evaluated images."""

    def alert(self, title: str, text: str) -> None:
        """Something that somebody should look at."""

    def close(self, failed: bool) -> None:
        """The run has ended; `failed`: by an error."""
