"""What a run's evaluations have said so far: which weights are best, and when to lower the learning rate or stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fiber.errors import ConfigError

LEAST_GAIN = 1e-4
"""Share of the level that a value must exceed it by to end a plateau, as in torch's ReduceLROnPlateau."""


@dataclass
class Selection:
    """What the evaluations of a run have said of `figure` (higher is better), to choose weights, lower the learning
    rate and stop. Part of a run's state, the same on all ranks. `figure` None: only `evaluated` is kept.

    `step`, `value`, `figures`: of the best evaluation so far. `without_gain`: evaluations since then. `drops`: times
    that the plateau schedule has lowered the learning rate: after `patience` + 1 evaluations that do not clearly
    exceed the `level` of the plateau, of which `flat` are counted since the last drop. `evaluated`: the step of the
    newest evaluation.
    """

    figure: str | None
    patience: int
    step: int | None = None
    value: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    without_gain: int = 0
    drops: int = 0
    level: float | None = None
    flat: int = 0
    evaluated: int = 0

    def add(self, step: int, figures: Mapping[str, float]) -> bool:
        """Take in the evaluation before update `step`; -> whether it is the best so far. A value that is not a number
        is no gain. Raises ConfigError where the figure is none of the evaluation's."""
        self.evaluated = step
        if self.figure is None:
            return False
        if self.figure not in figures:
            raise ConfigError(
                f"train.best: the evaluation has no figure {self.figure!r}; it has {', '.join(figures) or 'none'}"
            )
        value = figures[self.figure]
        gain = math.isfinite(value) and (self.value is None or value > self.value)
        if gain:
            self.step, self.value, self.figures, self.without_gain = step, value, dict(figures), 0
        else:
            self.without_gain += 1
        if math.isfinite(value) and (self.level is None or value > self.level * (1 + LEAST_GAIN)):
            self.level, self.flat = value, 0
        else:
            self.flat += 1
        if self.flat > self.patience:
            self.drops, self.flat = self.drops + 1, 0
        return gain

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return asdict(self)

    def forget_best(self) -> None:
        """Let the next evaluation be the best; what the learning rate and the end depend on stays."""
        self.step, self.value, self.figures = None, None, {}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Of another figure only the step of the newest evaluation still holds."""
        same = state["figure"] == self.figure
        for name in state.keys() - {"figure", "patience"} if same else {"evaluated"}:  # an older state has no level
            setattr(self, name, state[name])
