"""Compare evaluations along training between groups of runs, such as seeds of the same settings.

    python tools/compare_runs.py --out PNG --metric NAME [--metric NAME ...] LABEL=RUN[,RUN...] ...

Prints a Markdown table (mean, and the least and greatest of the group) and draws one panel a metric, mean and range.
A metric is a name of metrics.jsonl without "eval/"; NAME:BASELINE also draws BASELINE, another metric, dotted. The
last line of stdout is a JSON summary of the last evaluation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Curve = tuple[np.ndarray, np.ndarray]
"""Steps (N,) and values (runs, N)."""


def read_curve(runs: Sequence[Path], metric: str) -> Curve:
    """The steps at which all runs were evaluated, and a metric there. Raises ValueError where there is none."""
    found = []
    for run in runs:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found.append({row["step"] + 1: row[f"eval/{metric}"] for row in rows if f"eval/{metric}" in row})
    steps = sorted(set.intersection(*map(set, found)))
    if not steps:
        raise ValueError(f"{', '.join(map(str, runs))}: no step at which all have eval/{metric}")
    return np.array(steps), np.array([[values[step] for step in steps] for values in found])


def table(groups: dict[str, list[Path]], metrics: Sequence[str]) -> str:
    """Markdown: one row per evaluation, one column per metric and group, in percent: mean (least-greatest)."""
    curves = {(m, label): read_curve(runs, m) for m in metrics for label, runs in groups.items()}
    steps = sorted({int(step) for places, _ in curves.values() for step in places})
    lines = [
        "| step | " + " | ".join(f"{m}, {label}" for m, label in curves) + " |",
        "|---|" + "---|" * len(curves),
    ]
    for step in steps:
        cells = []
        for places, values in curves.values():
            at = 100 * values[:, places == step]
            spread = f" ({at.min():.1f}-{at.max():.1f})" if len(at) > 1 and at.size else ""
            cells.append(f"{at.mean():.1f}{spread}" if at.size else "")
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(groups: dict[str, list[Path]], metrics: Sequence[tuple[str, str]], out: Path) -> None:
    """One panel per (metric, baseline or ""): mean and range over the runs of a group."""
    figure, panels = plt.subplots(1, len(metrics), figsize=(5 * len(metrics), 3.6), squeeze=False)
    for panel, (metric, baseline) in zip(panels[0], metrics, strict=True):
        for label, runs in groups.items():
            steps, values = read_curve(runs, metric)
            (line,) = panel.plot(steps, values.mean(0), marker="o", label=label)
            panel.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.2)
        if baseline:
            steps, values = read_curve(next(iter(groups.values())), baseline)
            panel.plot(steps, values.mean(0), ":", color="grey", label=f"baseline: {baseline}")
        panel.set(xlabel="step", title=metric, ylim=(0, None))
        panel.set_xticks(steps)
        panel.grid(alpha=0.3)
    # One legend below both: on a panel it would cover curves.
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="lower center", ncols=len(groups) + 1, fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", metavar="LABEL=RUN[,RUN...]")
    parser.add_argument("--metric", action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    metrics = [(name, baseline) for name, _, baseline in (m.partition(":") for m in arguments.metric)]
    groups = {}
    for group in arguments.groups:
        label, separator, runs = group.partition("=")
        if not separator:
            parser.exit(2, f"error: {group!r}: write LABEL=RUN[,RUN...]\n")
        groups[label] = [Path(run) for run in runs.split(",")]
    try:
        print(table(groups, [metric for metric, _ in metrics]))
        plot(groups, metrics, arguments.out)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    last = {m: {label: read_curve(runs, m)[1][:, -1].mean() for label, runs in groups.items()} for m, _ in metrics}
    print(json.dumps(last))


if __name__ == "__main__":
    main()
