"""What a run reports: `metrics.jsonl` always, dashboards (W&B, TensorBoard) where asked for. Rank 0 only."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fiber import distributed
from fiber.config.loading import to_dict
from fiber.dashboards.board import About, Board, ExampleImage
from fiber.dashboards.sections import SAMPLES, headline, headline_figures, sectioned
from fiber.dashboards.tensorboard_board import start_tensorboard
from fiber.dashboards.wandb_board import start_wandb
from fiber.data.order import MixedStream
from fiber.errors import without_secrets
from fiber.training.folder import write_whole
from fiber.training.task import Task

STALLED = 0.5  # share of a step that waits for data from which somebody is told
NEAR_FAULTS = 0.5  # share of the tolerated faults from which somebody is told


class Tracker:
    """Log of one run directory; on ranks other than 0 every method does nothing.

    A resumed run continues the file at `start`: lines of later steps, left by a killed run, are dropped, since those
    steps run again, and so is the evaluation of `start` unless it is `evaluated`. It continues the same W&B run,
    whose id is kept in `RUN/wandb/id`; `tracking.wandb: off` stays off whatever WANDB_MODE says. A dashboard never
    holds training up: where it cannot begin, or fails later, the run goes on without it, and says so once.
    """

    def __init__(self, run: str | Path, config: Any, about: About, *, start: int = 0, evaluated: bool = True) -> None:
        self._file, self._boards, self._about = None, dict[str, Board](), about
        self._global_batch, self._tolerated = config.train.global_batch, config.data.max_fault_share
        self._skipped, settings = 0.0, config.tracking
        if not distributed.is_main():
            return
        path = Path(run) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        keep_before(path, start, evaluated)
        self._file = path.open("a")
        shown = json.loads(without_secrets(json.dumps(to_dict(config) | {"environment": about.environment})))
        boards: dict[str, Board | None] = {}
        wandb, project = settings.wandb, settings.project
        if wandb != "off":
            boards["wandb"] = start_wandb(Path(run), shown, wandb, project, about)
        if settings.tensorboard:
            boards["tensorboard"] = start_tensorboard(Path(run), shown, about, start)
        self._boards = {name: board for name, board in boards.items() if board is not None}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of update `step` (0-based). A value that is not finite is written as null."""
        if self._file is None:
            return
        line: dict[str, float | None] = {"step": step}
        line |= {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        samples = (step + 1) * self._global_batch
        named = sectioned(metrics)
        figures = [name.removeprefix("eval/") for name in named if name.startswith("eval/")]
        chosen = headline_figures(figures, self._about.figures)
        top = headline(metrics, samples) | {f"headline/{name}": named[f"eval/{name}"] for name in chosen}
        best = [f"{section}/{name}" for section in ("headline", "eval") for name in chosen]
        self._send(lambda board: board.log(step, {SAMPLES: samples} | top | named, best))
        self._watch(step, metrics, top)

    def images(self, step: int, paths: Sequence[Path]) -> None:
        """Evaluated images, see `ExampleImage.read`."""
        images = [ExampleImage.read(path) for path in paths] if self._boards else []
        if images:
            self._send(lambda board: board.images(step, images))

    @contextmanager
    def failure_known(self) -> Iterator[None]:
        """An error inside is sent as an alert, and the dashboards know the run as failed."""
        try:
            yield
        except Exception as error:
            self._alert("the run failed", without_secrets(f"{type(error).__name__}: {error}")[:500])
            self.close(failed=True)
            raise

    def close(self, failed: bool = False) -> None:
        """Close the file, and wait a minute at most for what dashboards have still to upload."""
        if self._file is not None:
            self._file.close()
        self._send(lambda board: board.close(failed))

    def _watch(self, step: int, metrics: Mapping[str, float], top: Mapping[str, float]) -> None:
        """Tell somebody of what goes wrong slowly."""
        if (skipped := metrics.get("skipped/nonfinite", 0.0)) > self._skipped:
            self._alert("loss not finite", f"step {step}: {skipped:g} updates have been skipped so far")
            self._skipped = skipped
        if (share := top.get("headline/fault_share", 0.0)) > NEAR_FAULTS * self._tolerated:
            self._alert("unusable samples", f"step {step}: {share:.2%}, the run ends at {self._tolerated:.2%}")
        if (share := top.get("headline/data_wait", 0.0)) > STALLED:
            self._alert("waiting for data", f"step {step}: {share:.0%} of the time; more data.workers or nearer data")

    def _alert(self, title: str, text: str) -> None:
        self._send(lambda board: board.alert(title, text))

    def _send(self, call: Callable[[Board], None]) -> None:
        for name, board in list(self._boards.items()):
            try:
                call(board)
            except Exception as error:  # whatever it is, it must not stop a training run
                later = " (`wandb sync` later)" if name == "wandb" else ""
                print(f"tracking.{name}: {error!r:.200}; going on without it{later}", file=sys.stderr)
                del self._boards[name]


def about(config: Any, task: Task, module: nn.Module, stream: MixedStream) -> About:
    """What dashboards are told of a run at its start. `module`: whole, not yet shared out."""
    device, sets = distributed.device(), [source.shards for source in stream.sources]
    start = None if config.init_from is None else Path(without_secrets(config.init_from))
    parent = None if start is None else start.parent if start.name == "export" else start
    wandb_id = file.read_text().strip() if parent and (file := parent / "wandb" / "id").is_file() else None
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    environment = {
        "world": distributed.world_size(),
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "parameters": sum(size for size, _ in sizes),
        "trained_parameters": sum(size for size, trained in sizes if trained),
        "samples_per_epoch": stream.epoch_length,
        "data": [
            {"name": shards.name, "samples": len(shards), "fingerprint": shards.fingerprint}
            | {key: shards.info[key] for key in ("split", "licence") if key in shards.info}
            for shards in sets
        ],
        "parent": None if parent is None else {"name": parent.name, "wandb_id": wandb_id},
    }
    tags = [task.stage, task.name, config.train.precision, config.tuning.mode, *(shards.name for shards in sets)]
    figures = [config.train.best, *task.headline] if config.train.best else task.headline
    name = Path(config.output).name if parent is None else parent.name
    return About(name, task.name, tags, list(figures), environment)


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
