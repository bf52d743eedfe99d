"""Boxes of COCO's segmentations: polygons and run-length masks, as pycocotools reads them (its maskApi.c)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

_LARGEST = 1 << 31  # pixels


def mask_box(segmentation: Any) -> list[float] | None:
    """[x, y, width, height] around polygons ([[x, y, x, y, ...], ...]) or a mask ({"size": [height, width],
    "counts": runs or their text}); None where it is neither or empty."""
    try:
        if isinstance(segmentation, dict):
            return _run_box(segmentation)
        return _polygon_box(segmentation)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        return None


def _polygon_box(polygons: Any) -> list[float] | None:
    if polygons and not isinstance(polygons[0], (list, tuple)):
        polygons = [polygons]  # one flat polygon, as some tools write
    points = [float(number) for polygon in polygons for number in polygon]
    xs, ys = points[0::2], points[1::2]
    if not ys or len(points) % 2 or not all(map(math.isfinite, points)):
        return None
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _run_box(mask: dict[str, Any]) -> list[float] | None:
    height, width = (int(side) for side in mask["size"])
    if height < 1 or width < 1 or height * width > _LARGEST:
        return None
    left, top, right, bottom = width, height, 0, 0
    at = 0
    for number, run in enumerate(_runs(mask["counts"])):
        end = at + run
        if run < 0 or end > height * width:
            return None
        if number % 2 and run:  # runs go down the columns; every second one is of the object
            first, last = at // height, (end - 1) // height
            left, right = min(left, first), max(right, last + 1)
            whole = first != last
            top = 0 if whole else min(top, at % height)
            bottom = height if whole else max(bottom, (end - 1) % height + 1)
        at = end
    return [left, top, right - left, bottom - top] if right else None


def _runs(counts: Any) -> Iterator[int]:
    """Run lengths of either form. In the text, a character holds 5 bits (and a sixth: more to come); from the fourth
    on, a number is the difference to the one before the last."""
    if not isinstance(counts, (str, bytes)):
        yield from (int(run) for run in counts)
        return
    data = counts.encode() if isinstance(counts, str) else counts
    runs: list[int] = []
    at = 0
    while at < len(data):
        value = shift = 0
        more = True
        while more:
            code = data[at] - 48
            if not 0 <= code < 64:
                raise ValueError(f"character {code + 48} in a mask's counts")
            value |= (code & 31) << shift
            more, shift, at = bool(code & 32), shift + 5, at + 1
            if not more and code & 16:
                value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        yield runs[-1]
