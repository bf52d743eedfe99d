"""What the parts of a report are made of: plain data that `report.js` draws. Numbers are fractions where they can be.

A part is one set and field: tables, charts, a confusion matrix, notes, and an item per image (or question, caption,
pair) with its error, by which the gallery is ordered.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_CLASSES = 25  # rows of a confusion matrix


@dataclass
class ReportItem:
    """One tile of the gallery. `sample`: its number in the set. `error`: the greater, the worse. `tags`: what is
    wrong with it and how often. `classes`: what the class filter knows it by. `lines`: words below the image, each
    with whether it is right (None: neither). `boxes`: [x0, y0, x1, y1] in px of the stored image, whose (width,
    height) is `size`; "found" or "true"; what became of it; its label; its score (-1: none). `other`: the number of
    a sample whose image stands beside."""

    sample: int
    error: float
    tags: Mapping[str, int]
    classes: Sequence[str] = ()
    lines: Sequence[tuple[str, bool | None]] = ()
    boxes: Sequence[tuple[list[float], str, str, str, float]] = ()
    size: tuple[int, int] = (0, 0)
    score: float = -1.0
    other: int | None = None


@dataclass
class Part:
    """`tables`: {"title", "columns", "rows"}. `charts`: {"title", "x", "y", "series": [{"name", "points"}]} or
    {"title", "x", "bars": [[label, value]]}. `matrix`: {"rows", "columns", "cells"}, truth by prediction."""

    title: str
    error: str  # what the error of an item counts
    items: list[ReportItem] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
    matrix: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def confusion_matrix(pairs: Mapping[tuple[str, str], int], last: tuple[str, str] | None = None) -> dict[str, Any]:
    """Counts of (truth, prediction) as a matrix of the classes that are confused most, MOST_CLASSES of them, in the
    order of their names. `last`: names of the row and of the column for "nothing", which stand last."""
    weight: Counter[str] = Counter()
    for (truth, predicted), count in pairs.items():
        for name in {truth, predicted} - set(last or ()):
            weight[name] += count * (1 if truth == predicted else 1000)
    names = sorted(name for name, _ in weight.most_common(MOST_CLASSES))
    rows, columns = ([*names, last[0]], [*names, last[1]]) if last else (names, names)
    cells = [[pairs.get((truth, predicted), 0) for predicted in columns] for truth in rows]
    shown = f"{len(names)} of {len(weight)} classes, those confused most" if len(names) < len(weight) else ""
    return {"rows": rows, "columns": columns, "cells": cells, "note": shown}


def histogram(title: str, x: str, values: Iterable[float], edges: Sequence[float], names: Sequence[str]) -> dict:
    """Bars of how many of `values` are below each of `edges` and not below the one before; the last bar has the
    rest."""
    bars = [0] * len(names)
    for value in values:
        bars[sum(value >= edge for edge in edges)] += 1
    return {"title": title, "x": x, "bars": [list(bar) for bar in zip(names, bars, strict=True)]}


def mistakes(items: Iterable[ReportItem]) -> Counter[str]:
    """How often each mistake is made in a set."""
    total: Counter[str] = Counter()
    for item in items:
        total.update(item.tags)
    return total
