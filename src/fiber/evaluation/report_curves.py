"""Training curves of a report, from `metrics.jsonl`."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

POINTS = 300  # of a curve
# Titles of the charts and the beginnings of the names that each shows, in this order; what no row names is left out.
CHARTS = (
    ("Losses, weighted as they are summed", ("weighted/",)),
    ("Losses", ("loss/",)),
    ("Accuracy in training", ("accuracy/",)),
    ("Evaluation", ("eval/",)),
    ("Gates of the cross-attention", ("gate/",)),
    ("Learning rates", ("lr/",)),
    ("Gradient norm before clipping", ("grad_norm",)),
    ("Pairs per second", ("pairs_per_second",)),
)
MOST_SERIES = 24


def curves(path: Path) -> list[dict[str, Any]]:
    """Charts {"title", "x", "y", "series": [{"name", "points": [[step, value], ...]}]}; long curves are thinned. Left
    out are -1 (no figure), what is not finite, and what was recorded once. Raises ValueError for lines of others."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a line that a kill cut short
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise ValueError(f"{path}: the line {line:.60} is none of a run's: remove it")
        for name, value in row.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if number and name != "step" and value != -1:
                found[name].append([row["step"], float(f"{value:.5g}")])
    charts = []
    for title, beginnings in CHARTS:
        names = [name for name in found if name.startswith(beginnings) and len(found[name]) > 1][:MOST_SERIES]
        series = [{"name": name.partition("/")[2] or name, "points": thin(found[name])} for name in names]
        if series:
            charts.append({"title": title, "x": "step", "y": "", "series": series})
    return charts


def thin(points: list[list[float]]) -> list[list[float]]:
    """At most POINTS of them, evenly, the last one always."""
    stride = -(-len(points) // POINTS)
    return points[::-1][::stride][::-1]


def marks(config: Mapping[str, Any]) -> list[list[Any]]:
    """[step, what begins there] of the phases that a configuration names."""
    found: list[list[Any]] = []
    pretrain, optim, steps = (config.get(key) or {} for key in ("pretrain", "optim", "train"))
    total = steps.get("steps") or 0
    warmup = optim.get("warmup") or 0
    if warmup:
        found.append([round(warmup * total) if warmup < 1 else round(warmup), "warm-up ends"])
    if config.get("task", "") == "pretrain":
        found.append([pretrain.get("itc_only_steps"), "matching and masked words begin"])
        found.append([pretrain.get("random_negative_steps"), "hard negatives begin"])
    return sorted(mark for mark in found if mark[0] and mark[0] < total)
