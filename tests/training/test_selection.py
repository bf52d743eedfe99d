"""Best so far, gains, drops and evaluations without gain on a sequence worked out by hand."""

import json
import math

import pytest

from fiber.errors import ConfigError
from fiber.training.selection import Selection


def test_gains_drops_and_patience() -> None:
    record, values = Selection("accuracy", patience=2), [0.3, 0.3, 0.2, 0.5, math.nan, 0.4, 0.1, 0.1, 0.6]
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
