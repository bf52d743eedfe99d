"""Numbers on the command line: types of argparse that know their bounds.

    parser.add_argument("--quality", type=whole_number(1, 100), default=92)
    parser.add_argument("--top-p", type=real_number(above=0, most=1), default=0.9)

Any other value ends the command with status 2 and a line that names the option and its bounds:

    fiber shards: error: argument --quality: 500 is not a whole number from 1 to 100
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

LARGEST = 10**9
"""Of whole numbers without an upper bound of their own, as of the counts of a configuration."""


@dataclass(frozen=True)
class BoundedNumber:
    """The numbers of a kind between bounds, as a type of argparse; None is no bound. `above` and `below` are not
    themselves among the numbers, `least` and `most` are. str() says which numbers they are."""

    kind: type[int] | type[float]
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __call__(self, text: str) -> float:
        """The number in a text. Raises ArgumentTypeError, also for NaN and infinity."""
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if self.kind is int and self.most is None and value > LARGEST:
            raise argparse.ArgumentTypeError(f"{text} is more than {LARGEST}")
        if value not in self:
            raise argparse.ArgumentTypeError(f"{text} is not {self}")
        return value

    def __contains__(self, value: float) -> bool:
        return (
            -math.inf < value < math.inf
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        name = "a whole number" if self.kind is int else "a number"
        if self.least is not None and self.most is not None:
            return f"{name} from {self.least} to {self.most}"
        bounds = {"above": self.above, "of at least": self.least, "below": self.below, "at most": self.most}
        return f"{name} " + " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)


def whole_number(least: int, most: int | None = None) -> BoundedNumber:
    """A type of argparse: whole numbers from `least` to `most`, both included (None: LARGEST)."""
    return BoundedNumber(int, least, most)


def real_number(
    least: float | None = None, most: float | None = None, *, above: float | None = None, below: float | None = None
) -> BoundedNumber:
    """A type of argparse: numbers from `least` to `most`, both included, or `above` and `below` one, not included."""
    return BoundedNumber(float, least, most, above, below)
