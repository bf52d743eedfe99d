"""The table and the curves of launch/photographs.sh: scores on real photographs beside their baselines.

    python tools/photographs_table.py RUNS

RUNS: the folder that the script fills; runs that are not there are left out. Writes RUNS/table.md and RUNS/curves.png
and prints the table. Exit status 1 where there is nothing to show.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from region_report import class_agnostic_ap

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CELLS = ("ap", "ap50", "ap75", "aps")
STARTS = {"nothing": "from nothing", "shapes": "from drawn shapes"}


def read(path: Path) -> dict[str, float]:
    """Figures of a summary.json or of the line that an evaluation prints."""
    found: dict[str, float] = json.loads(path.read_text())
    return found.get("eval", found)  # type: ignore[return-value]


def tested(runs: Path, pattern: str) -> list[dict[str, float]]:
    """Figures on the test set of every run of that name, by seed."""
    return [read(path) for path in sorted(runs.glob(f"{pattern}/test.json"))]


def cell(runs: Sequence[dict[str, float]], keys: Iterable[str]) -> str:
    """Percent: the mean over seeds, and (least-greatest) where there are several."""
    texts = []
    for key in keys:
        values = [100 * run[key] for run in runs]
        spread = f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else ""
        texts.append(f"{np.mean(values):.1f}{spread}")
    return " / ".join(texts)


def cells(runs: Path) -> list[str]:
    """Rows of the microscope images."""
    zero, name = runs / "bccd_zero_shot.json", "cells, 72 test images: AP / AP50 / AP75 / AP small,"
    found = {"zero-shot": [read(zero)] if zero.exists() else []}
    found |= {"from drawn shapes": tested(runs, "bccd_[0-9]*"), "from nothing": tested(runs, "bccd_nothing")}
    if not any(found.values()):
        return []
    base = class_agnostic_ap(runs / "shards/bccd/test")
    baseline = " / ".join(f"{100 * base[key]:.1f}" for key in CELLS)
    return [f"| {name} {start} | {len(of)} | {cell(of, CELLS)} | {baseline} |" for start, of in found.items() if of]


def objects(runs: Path) -> list[str]:
    """Rows of the photographs with boxes."""
    rows = []
    for split, path in (("train", runs / "coco128/summary.json"), ("val", runs / "coco128/test.json")):
        if path.exists():
            base = class_agnostic_ap(runs / "shards/coco128" / split)
            beside = f"{100 * base['ap50']:.1f} / {100 * base['ap']:.1f}"
            what = {"train": "learned by heart", "val": "never seen"}[split]
            rows.append(
                f"| objects, 128 images {what}: AP50 / AP | 1 | {cell([read(path)], ('ap50', 'ap'))} | {beside} |"
            )
    return rows


def texts(runs: Path) -> list[str]:
    """Rows of the photographs with captions."""
    rows = []
    for found in tested(runs, "pairs200"):
        chance = f"{100 * found['chance_t2i_r1']:.1f}"
        for what, prefix in (("contrast", ""), ("matching", "reranked_")):
            value = cell([found], (f"{prefix}t2i_r1", f"{prefix}i2t_r1"))
            rows.append(f"| 200 pairs learned by heart, {what}: R@1 text -> image / back | 1 | {value} | {chance} |")
    for found in tested(runs, "pairs200_captions"):
        value, fixed = cell([found], ("cider",)), cell([found], ("constant_cider",))
        rows.append(f"| their captions: CIDEr | 1 | {value} | {fixed}, the best single caption |")
    for start, name in STARTS.items():
        if of := tested(runs, f"captions_{start}_[0-9]*"):
            value, chance = cell(of, ("t2i_r10", "i2t_r10")), 100 * 10 / of[0]["images"]
            what = f"200 photographs never seen, {name}: R@10 text -> image / back"
            rows.append(f"| {what} | {len(of)} | {value} | {chance:.1f} |")
    return rows


def curves(runs: Path, out: Path) -> None:
    """What evaluations during training found, one panel a set."""
    panels = {
        "cells: AP on val": ("bccd_*", "ap"),
        "objects: AP50 on the images trained on": ("coco128", "ap50"),
        "captions: R@10 of 200 never seen": ("captions_*", "t2i_r10"),
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.2), constrained_layout=True)
    for axis, (title, (pattern, key)) in zip(axes, panels.items(), strict=True):
        for path in sorted(runs.glob(f"{pattern}/metrics.jsonl")):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            points = {line["step"] + 1: 100 * line[f"eval/{key}"] for line in lines if f"eval/{key}" in line}
            axis.plot(list(points), list(points.values()), marker=".", label=path.parent.name)
        axis.set(title=title, xlabel="steps", ylabel="percent", ylim=(0, 100 if "captions" not in title else None))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    runs = parser.parse_args().runs
    rows = [*cells(runs), *objects(runs), *texts(runs)]
    if not rows:
        parser.exit(1, f"error: {runs} holds no finished run: start launch/photographs.sh first\n")
    head = ["| score, percent | seeds | found | baseline |", "|---|---|---|---|"]
    (runs / "table.md").write_text("\n".join([*head, *rows]) + "\n")
    curves(runs, runs / "curves.png")
    print((runs / "table.md").read_text())


if __name__ == "__main__":
    main()
