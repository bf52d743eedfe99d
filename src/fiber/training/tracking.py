"""What a run reports: `metrics.jsonl` always, Weights & Biases where asked for and reachable. Rank 0 only."""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from fiber import distributed


class Tracker:
    """Log of one run directory; on ranks other than 0 every method does nothing.

    A resumed run continues the file at `start` (lines of later steps, left by a killed run, are dropped, since those
    steps run again) and continues the same W&B run, whose id is kept in `RUN/wandb/id`. W&B never holds training
    up: without key, network or package the run goes on offline or without it, and says so.
    """

    def __init__(
        self,
        run: str | Path,
        config: Mapping[str, Any],
        *,
        wandb: Literal["online", "offline", "off"],
        project: str,
        start: int = 0,
    ) -> None:
        self._file, self._wandb = None, None
        if not distributed.is_main():
            return
        path = Path(run) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        keep_before(path, start)
        self._file = path.open("a")
        if wandb != "off":
            self._wandb = _start_wandb(Path(run), config, wandb, project)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of update `step` (0-based). A value that is not finite is written as null."""
        if self._file is None:
            return
        line: dict[str, float | None] = {"step": step}
        line |= {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table in W&B. A cell may be text, a number, or the Path of an image in the run's `figures/`."""
        if self._wandb is None:
            return
        import wandb

        cells = [[wandb.Image(str(cell)) if isinstance(cell, Path) else cell for cell in row] for row in rows]
        self._wandb.log({name: wandb.Table(columns=list(columns), data=cells)}, step=step)

    def images(self, step: int, paths: Sequence[Path]) -> None:
        """The table "eval/images" of image files, each with the words of the JSON file beside it, if there is
        one: `{column: text}` (question, answers, prediction, say)."""
        beside = [path.with_suffix(".json") for path in paths]
        words = [json.loads(path.read_text()) if path.exists() else {} for path in beside]
        columns = list(dict.fromkeys(chain.from_iterable(words)))
        rows = [
            [path, path.stem, *(own.get(column, "") for column in columns)]
            for path, own in zip(paths, words, strict=True)
        ]
        if rows:
            self.table(step, "eval/images", ["image", "name", *columns], rows)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


def keep_before(path: Path, start: int) -> None:
    """Drop the lines of `path` (jsonl with "step") that belong to steps from `start` on, or that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["step"] < start:
            kept.append(line + "\n")
    aside = path.with_suffix(".new")
    aside.write_text("".join(kept))
    os.replace(aside, path)


def _start_wandb(run: Path, config: Mapping[str, Any], mode: Literal["online", "offline"], project: str) -> Any:
    """A W&B run, or None where the package is missing. Takes seconds at most when there is no network."""
    try:
        import wandb
    except ImportError:
        print("tracking.wandb: the wandb package is not installed; metrics.jsonl only", file=sys.stderr)
        return None
    folder = run / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "id"
    if not known.exists():
        known.write_text(secrets.token_hex(4))
    settings = wandb.Settings(init_timeout=15, silent=True)
    if mode == "online" and not _reachable(wandb, settings.base_url):
        print("tracking.wandb: no key or no network; going on offline (`wandb sync` later)", file=sys.stderr)
        mode = "offline"
    attempts: tuple[Literal["online", "offline"], ...] = (mode, "offline")
    for attempt in attempts:
        try:
            return wandb.init(
                project=project,
                name=run.name,
                dir=str(run),
                id=known.read_text().strip(),
                resume="allow" if attempt == "online" else None,
                config=dict(config),
                mode=attempt,
                settings=settings,
            )
        except Exception as error:  # whatever it is, it must not stop a training run
            print(f"tracking.wandb: {attempt} failed ({error})", file=sys.stderr)
    return None


def _reachable(wandb: Any, base_url: str) -> bool:
    """Whether a key is configured and the server accepts a connection within three seconds (a proxy is trusted)."""
    if not wandb.api.api_key:
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    address = urlsplit(base_url)
    try:
        with socket.create_connection((address.hostname, address.port or 443), timeout=3.0):
            return True
    except OSError:
        return False
