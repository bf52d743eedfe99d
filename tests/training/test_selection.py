"""Best so far, gains, drops and evaluations without gain on a sequence worked out by hand."""

import json
import math
import random

import pytest
import torch

from fiber.config.base import OptimConfig
from fiber.errors import ConfigError
from fiber.training.optim import apply_schedule
from fiber.training.selection import Selection


def test_gains_drops_and_patience() -> None:
    record, values = Selection("accuracy", patience=1), [0.3, 0.3, 0.2, 0.5, math.nan, 0.4, 0.1, 0.1, 0.6]
    gains, without, drops = [], [], []
    for step, value in enumerate(values, 1):
        gains.append(record.add(10 * step, {"accuracy": value, "other": 1.0}))
        without.append(record.without_gain)
        drops.append(record.drops)
    assert gains == [True, False, False, True, False, False, False, False, True]
    assert without == [0, 1, 2, 0, 1, 2, 3, 4, 0]
    assert drops == [0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert (record.step, record.value, record.evaluated) == (90, 0.6, 90)
    assert record.figures == {"accuracy": 0.6, "other": 1.0}


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_drops_are_those_of_torch(patience: int) -> None:
    """The scheduler that the release builds on: drops after `patience` + 1 evaluations without gain, counts from
    there again, takes a gain below 0.01 % for none, and never goes below the floor."""
    draw = random.Random(patience)
    sequences = [[0.9, *[0.5] * 9], [0.5, 0.50004, 0.50008, 0.5001, 0.4, 0.2], [0.0, 0.0, 0.1]]
    sequences += [[draw.choice([0.1, 0.3, 0.30001, 0.5, math.nan]) for _ in range(40)] for _ in range(20)]
    config = OptimConfig(lr=1e-4, warmup=0, schedule="plateau", patience=patience, min_lr=1e-6)
    for values in sequences:
        groups = [
            {"params": [torch.zeros(1)], "lr": 1e-4 * factor, "multiplier": factor} for factor in (1.0, 0.1, 2e-3)
        ]
        optimizer, ours = torch.optim.AdamW(groups), torch.optim.AdamW(groups)
        for group in ours.param_groups:
            group |= {"role": "base", "full_decay": 0.0}
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=0.1, patience=patience, min_lr=1e-6
        )
        record, fell = Selection("ap", patience), []
        for step, value in enumerate(values):
            scheduler.step(value)
            record.add(step, {"ap": value})
            apply_schedule(ours, step, 100, config, record.drops)
            assert [g["lr"] for g in ours.param_groups] == pytest.approx([g["lr"] for g in optimizer.param_groups])
            fell.append(record.drops)
        if patience == 3 and values[:2] == [0.9, 0.5]:  # best, then nine worse
            assert fell == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_a_state_of_an_older_run_goes_on() -> None:
    """It has no level of a plateau; the next value sets it. Patience is the new configuration's."""
    record = Selection("ap", patience=3)
    record.add(1, {"ap": 0.5})
    state = {name: value for name, value in record.state().items() if name not in ("level", "flat")}
    again = Selection("ap", patience=2)
    again.resume(state)
    again.add(2, {"ap": 0.4})
    assert (again.patience, again.value, again.level, again.flat) == (2, 0.5, 0.4, 0)


def test_it_goes_on_from_its_state_and_forgets_another_figure() -> None:
    record = Selection("accuracy", patience=2)
    for step, value in enumerate((0.1 + 0.2, 0.1, 0.2)):
        record.add(step, {"accuracy": value})
    state = json.loads(json.dumps(record.state()))
    again, other = Selection("accuracy", patience=2), Selection("recall", patience=2)
    again.resume(state)
    other.resume(state)
    assert again == record
    assert other == Selection("recall", patience=2, evaluated=2)


def test_an_unknown_figure_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"^train\.best: the evaluation has no figure .acc.; it has accuracy, ap50"):
        Selection("acc", patience=2).add(1, {"accuracy": 0.5, "ap50": 0.1})
    assert Selection(None, patience=2).add(1, {"accuracy": 0.5}) is False
