"""What a run reports: `metrics.jsonl` always, Weights & Biases where asked for and reachable. Rank 0 only."""

from __future__ import annotations

import json
import math
import os
import secrets
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.error import HTTPError
from urllib.request import urlopen

from fiber import distributed
from fiber.errors import without_secrets
from fiber.training.folder import write_whole

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run as WandbRun

Cell = str | float | Path  # of a table: text, a number, or an image file


class Tracker:
    """Log of one run directory; on ranks other than 0 every method does nothing.

    A resumed run continues the file at `start`: lines of later steps, left by a killed run, are dropped, since those
    steps run again, and so is the evaluation of `start` unless it is `evaluated`. It continues the same W&B run,
    whose id is kept in `RUN/wandb/id`. Variables WANDB_* come before what is set here, but `wandb` "off" stays off.
    W&B never holds training up: without key, network or package, or when it fails later, the run goes on offline or
    without it, and says so once.
    """

    def __init__(
        self,
        run: str | Path,
        config: Mapping[str, Any],
        *,
        wandb: Literal["online", "offline", "off"],
        project: str,
        start: int = 0,
        evaluated: bool = True,
    ) -> None:
        self._file, self._wandb = None, None
        if not distributed.is_main():
            return
        path = Path(run) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        keep_before(path, start, evaluated)
        self._file = path.open("a")
        if wandb != "off":
            self._wandb = _start_wandb(Path(run), json.loads(without_secrets(json.dumps(config))), wandb, project)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of update `step` (0-based). A value that is not finite is written as null."""
        if self._file is None:
            return
        line: dict[str, float | None] = {"step": step}
        line |= {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._send(lambda wandb_run: wandb_run.log(dict(metrics), step=step))

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A table in W&B; images lie in the run's `figures/`."""

        def send(wandb_run: WandbRun) -> None:
            import wandb

            cells = [[wandb.Image(str(cell)) if isinstance(cell, Path) else cell for cell in row] for row in rows]
            wandb_run.log({name: wandb.Table(columns=list(columns), data=cells)}, step=step)

        self._send(send)

    def images(self, step: int, paths: Sequence[Path]) -> None:
        """The table "eval/images" of image files, each with the texts of the JSON file of its name, if there is
        one: `{column: text}` (question, answers, prediction, say)."""
        files = [path.with_suffix(".json") for path in paths]
        texts = [json.loads(file.read_text()) if file.exists() else {} for file in files]
        columns = list(dict.fromkeys(chain.from_iterable(texts)))
        rows = [
            [path, path.stem, *(text.get(column, "") for column in columns)]
            for path, text in zip(paths, texts, strict=True)
        ]
        if rows:
            self.table(step, "eval/images", ["image", "name", *columns], rows)

    def close(self) -> None:
        """Close the file, and wait FINISH_S at most for what W&B has still to upload."""
        if self._file is not None:
            self._file.close()
        self._send(lambda wandb_run: wandb_run.finish())

    def _send(self, call: Callable[[WandbRun], None]) -> None:
        if self._wandb is None:
            return
        try:
            call(self._wandb)
        except Exception as error:  # whatever it is, it must not stop a training run
            print(f"tracking.wandb: {error!r:.200}; going on without it (`wandb sync` later)", file=sys.stderr)
            self._wandb = None


def keep_before(path: Path, start: int, evaluated: bool = True) -> None:
    """Drop the lines of `path` (jsonl with "step") that belong to steps from `start` on, or that a kill cut short;
    and evaluations of step `start` - 1, unless what came of them is known (`evaluated`)."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            again = not evaluated and record["step"] == start - 1 and any(key.startswith("eval/") for key in record)
            if record["step"] < start and not again:
                kept.append(line + "\n")
        except (ValueError, TypeError, LookupError):
            continue
    write_whole(path, "".join(kept))


INIT_S, FINISH_S = 15.0, 60.0  # how long W&B may take to begin, and at the end to upload


def _start_wandb(
    folder: Path, config: Mapping[str, Any], mode: Literal["online", "offline"], project: str
) -> WandbRun | None:
    """A W&B run in `folder`, or None where there is no package or WANDB_MODE=disabled. Without a network it takes
    seconds, with a server that does not answer INIT_S."""
    try:
        import wandb
    except ImportError:
        print("tracking.wandb: the wandb package is not installed; metrics.jsonl only", file=sys.stderr)
        return None
    wanted = os.environ.get("WANDB_MODE", mode)
    if wanted == "disabled":
        return None
    file = folder / "wandb" / "id"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(secrets.token_hex(4))
    ours = {  # variable -> setting of that meaning, ours where the variable is not set
        "WANDB_PROJECT": ("project", project),
        "WANDB_NAME": ("run_name", folder.name),
        "WANDB_DIR": ("root_dir", str(folder)),
        "WANDB_RUN_ID": ("run_id", file.read_text().strip()),
        "WANDB_SILENT": ("silent", True),
        "WANDB_INIT_TIMEOUT": ("init_timeout", INIT_S),
        "WANDB_FINISH_TIMEOUT": ("finish_timeout", FINISH_S),
        "WANDB_FINISH_TIMEOUT_RAISES": ("finish_timeout_raises", True),
    }
    settings = wandb.Settings(**{key: value for name, (key, value) in ours.items() if name not in os.environ})
    attempts: list[Literal["online", "offline"]] = ["offline"]
    if wanted == "online":
        if wandb.api.api_key and _answers(wandb.setup().settings.base_url):
            attempts.insert(0, "online")
        else:
            print("tracking.wandb: no key or no network; going on offline (`wandb sync` later)", file=sys.stderr)
    for attempt in attempts:
        settings.mode = attempt
        if attempt == "online" and "WANDB_RESUME" not in os.environ:
            settings.resume = "allow"
        try:
            return wandb.init(config=dict(config), settings=settings)
        except Exception as error:  # whatever it is, it must not stop a training run
            print(f"tracking.wandb: {attempt} failed ({error!r:.200})", file=sys.stderr)
    return None


def _answers(url: str) -> bool:
    """Whether a server answers within three seconds, through the proxy of the environment if there is one."""
    try:
        urlopen(url, timeout=3.0).close()
    except (OSError, ValueError) as error:  # HTTP's errors are answers; W&B may know the certificate
        return isinstance(error, HTTPError) or isinstance(getattr(error, "reason", None), ssl.SSLError)
    return True
