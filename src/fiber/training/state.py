"""What a run is made of while it trains: its parts, its counters, and when it is to be saved and evaluated."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from fiber import distributed
from fiber.config.base import OptimConfig, TrainConfig
from fiber.countdown import Countdown
from fiber.training.checkpoint import Checkpoints
from fiber.training.ema import Ema
from fiber.training.optim import AdamW
from fiber.training.selection import Selection
from fiber.training.speed import FlopsPerSample
from fiber.training.tracking import Tracker
from fiber.training.watchdog import Watchdog
from fiber.training.zero import Engine

Batch = dict[str, Any]
Evaluate = Callable[[Engine, int], dict[str, float]]


@dataclass
class Run:
    """What the loop works with. `engine`, `optimizer` from zero.build_engine. Checkpoints carry besides "stream", the
    position of the data, "counters", faults and skipped steps, and "record", what the evaluations have said."""

    engine: Engine
    optimizer: AdamW
    train: TrainConfig
    optim: OptimConfig
    folder: Path
    checkpoints: Checkpoints
    tracker: Tracker
    watchdog: Watchdog
    stream_state: Callable[[int], dict[str, Any]]
    ema: Ema | None = None
    evaluate: Evaluate | None = None
    evaluate_every: int = 0
    rehearse: Callable[[Engine], None] | None = None  # tries a batch of every evaluation set
    lost: Callable[[], bool] | None = None  # whether the run's folder has gone; asked on rank 0
    flops_per_sample: FlopsPerSample | None = None
    samples: str = "pairs"  # what the task trains on, as its speed names them
    shown: Countdown = field(default_factory=lambda: Countdown("training", show=False))
    counters: Counter = field(default_factory=Counter)  # skipped steps, and faults by reason: the same on all ranks
    new_faults: list[dict[str, Any]] = field(default_factory=list)  # of this rank, not yet in `counters`
    stop: bool = False  # this rank was asked to
    stopped: bool = False  # all ranks have agreed to, and saved
    done: int = 0  # updates made
    figures: dict[str, float] = field(default_factory=dict)  # of the newest evaluation
    record: Selection = field(init=False)

    def __post_init__(self) -> None:
        self.record = Selection(self.train.best, self.optim.patience)

    @property
    def exhausted(self) -> bool:
        """Whether `train.stop_after` evaluations have brought no gain."""
        return 0 < self.train.stop_after <= self.record.without_gain

    def due(self, step: int) -> bool:
        """Whether the weights before update `step` are to be evaluated."""
        regular = self.evaluate_every > 0 and step > 0 and step % self.evaluate_every == 0
        return self.evaluate is not None and (regular or step == self.train.steps)

    def request_stop(self, number: int, _: Any) -> None:
        """Signal handler: finish the step, save and leave; a second Ctrl-C ends at once. A launcher also sends
        SIGTERM when a rank has died."""
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        self.stop = True
        self.watchdog.suspect()

    def collect_faults(self) -> None:
        """Bring the ranks' unreadable samples together: into `counters`, and listed in `faults.jsonl`. Collective."""
        faults = list(chain.from_iterable(distributed.gather_objects(self.new_faults)))
        self.new_faults = []
        self.counters.update(f"faults/{fault['reason']}" for fault in faults)
        if faults and distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)  # it may have gone, and the weights are still to be saved
            with (self.folder / "faults.jsonl").open("a") as file:
                file.writelines(json.dumps(fault) + "\n" for fault in faults)

    def counts(self) -> dict[str, int]:
        """Faults by reason and skipped steps over all ranks so far. Collective."""
        self.collect_faults()
        return dict(self.counters)

    def save(self, step: int) -> None:
        self.watchdog.beat(step, "saving")
        self.collect_faults()
        state = {"stream": self.stream_state(step), "counters": dict(self.counters), "record": self.record.state()}
        self.checkpoints.save(step, self.engine, self.optimizer, self.ema, state, self.record.step)
