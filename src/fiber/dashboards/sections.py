"""How a run's metrics are laid out in a dashboard: headline / train / eval / gates / speed / data.

`metrics.jsonl` keeps the short names that the code uses ("loss/itc", "seconds/data"); dashboards group panels by what
stands before the first slash, so each name gets a section there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SECTIONS = ("headline", "train", "eval", "gates", "speed", "data")
SAMPLES = "train/samples"
"""Training samples seen so far: the horizontal axis of every panel."""

_OF_FIRST_WORD = {
    "eval": "eval/{rest}",
    "gate": "gates/{rest}",
    "faults": "data/faults/{rest}",
    "seconds": "speed/seconds/{rest}",
    "memory": "speed/memory/{rest}",
    "pairs_per_second": "speed/pairs_per_second",
    "tflops": "speed/tflops",
    "mfu": "speed/mfu",
}
# Name in "headline/" -> name in metrics.jsonl, of what a run logs while it trains.
_HEADLINES = {
    "loss": "loss/total",
    "pairs_per_second": "pairs_per_second",
    "mfu": "mfu",
    "peak_memory_gib": "memory/peak_gib",
}
MOST_FIGURES = 6
"""Figures of evaluations in "headline/": with the six of training there are twelve keys at most."""
ABSENT = -1.0
"""What AP is where a set has no such object (no large ones, say): nothing to plot."""


def sectioned(metrics: Mapping[str, float]) -> dict[str, float]:
    """Names of `metrics.jsonl` -> names in a section; figures that do not exist for the set (-1) are left out."""
    named = {}
    for name, value in metrics.items():
        first, _, rest = name.partition("/")
        if first == "eval" and value == ABSENT:
            continue
        named[_OF_FIRST_WORD.get(first, "train/{name}").format(rest=rest, name=name)] = value
    return named


def headline(metrics: Mapping[str, float], samples: int) -> dict[str, float]:
    """The "headline/" keys of a line of training metrics, after `samples` training samples: loss, speed and memory,
    the share of a step that waits for data, and the share of samples that could not be used."""
    found = {f"headline/{name}": metrics[source] for name, source in _HEADLINES.items() if source in metrics}
    if metrics.get("seconds/step"):
        found["headline/data_wait"] = metrics["seconds/data"] / metrics["seconds/step"]
        faults = sum(value for name, value in metrics.items() if name.startswith("faults/"))
        found["headline/fault_share"] = faults / max(samples, 1)
    return found


def headline_figures(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Those of an evaluation's figures `names` that stand in "headline/", MOST_FIGURES at most, in the order of
    `wanted`; a figure of one of several sets ("SET/ap") counts as its last word."""
    places = {figure: place for place, figure in reversed(list(enumerate(wanted)))}
    chosen = [name for name in names if name in places or name.rpartition("/")[2] in places]
    chosen.sort(key=lambda name: places.get(name, places.get(name.rpartition("/")[2], len(places))))
    return chosen[:MOST_FIGURES]
