"""The table of launch/shapes_region_tasks.sh: every region-level task on the shapes world, scores beside baselines.

    python tools/region_report.py RUNS --shapes DIR --out FILE.md

RUNS: the folder that the script fills; DIR: shards of the easy world. Prints the table, too. The last line of stdout
is a JSON summary.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from fiber.data.shards import ShardSet
from fiber.evaluation.metrics.coco_ap import coco_ap, coco_ground_truth

Figures = dict[str, float]
UNSEEN, KNOWN = "shapes_easy_compositional", "shapes_easy_test"


def class_agnostic_ap(folder: Path) -> Figures:
    """COCO metrics of a perfect localiser that ignores the names: every true box as every class, all alike."""
    shards = ShardSet(folder)
    records = [shards.record(i) for i in range(len(shards))]
    truth = coco_ground_truth(records, shards.categories)
    objects, ids = truth["annotations"], [category["id"] for category in shards.categories]
    found = (
        {"image_id": entry["image_id"], "category_id": one, "bbox": entry["bbox"], "score": 0.5}
        for entry in objects
        for one in ids
    )
    return {name.lower(): value for name, value in coco_ap(truth, found).items()}


def chance_of_an_expression(folder: Path) -> float:
    """How often a perfect localiser that ignores the words has the box that an expression means."""
    shards = ShardSet(folder)
    records = [shards.record(i) for i in range(len(shards))]
    return float(np.mean([1 / len(record["boxes"]) for record in records for _ in record.get("expressions", ())]))


def read(path: Path) -> Figures:
    """Figures of a summary.json or of the line that an evaluation prints."""
    found = json.loads(path.read_text())
    return found.get("eval", found)


def row(name: str, scores: Iterable[float], baseline: Iterable[float]) -> str:
    """A line of the table, in percent."""
    cells = (" / ".join(f"{100 * x:.1f}" for x in values) for values in (scores, baseline))
    return f"| {name} | {' | '.join(cells)} |"


def tasks(runs: Path, shapes: Path) -> list[str]:
    """The table of the tasks on the easy world."""
    before, refer, detect = (read(runs / f) for f in ("zero_shot.json", "refer/summary.json", "detect/summary.json"))
    chance = chance_of_an_expression(shapes / "test")
    known, unseen = (class_agnostic_ap(shapes / split) for split in ("test", "compositional"))
    lines = ["| task | score | baseline |", "|---|---|---|"]
    for title, name in (("any", "grounding"), ("merged", "merged")):
        score, base = ([before[f"{kind}_r{k}"] for k in (1, 5, 10)] for kind in (name, "class_agnostic"))
        lines.append(row(f"phrase grounding, as pre-trained: R@1 / 5 / 10 ({title})", score, base))
    for title, found in (("never trained on", before), ("fine-tuned", refer)):
        for rule, key in (("IoU", "referring_p1"), ("GIoU", "referring_giou_p1")):
            lines.append(row(f"referring expressions, {title}: P@1 ({rule})", [found[key]], [chance]))
    for title, found in (("zero-shot", before), ("fine-tuned", detect)):
        for where, key, base in (("combinations never seen before", UNSEEN, unseen), ("known ones", KNOWN, known)):
            score = [found[f"{key}/{k}"] for k in ("ap", "ap50")]
            lines.append(row(f"detection of {where}, {title}: AP / AP50", score, [base["ap"], base["ap50"]]))
    for title, found in (("zero-shot", before), ("fine-tuned", detect)):
        for rule in ("lvis", "fixed"):
            score = [found[f"{KNOWN}/{rule}_ap{part}"] for part in ("", "r", "c", "f")]
            lines.append(row(f"long tail, {title}: {rule} AP / rare / common / frequent", score, [known["ap"]]))
    return lines


def few_shot(runs: Path, figure: str) -> tuple[list[str], dict[str, dict[int, np.ndarray]]]:
    """The table of the few-shot runs, mean (least-greatest) over seeds, and the figures by mode and shots."""
    found: dict[str, dict[int, list[float]]] = {}
    for summary in sorted((runs / "few_shot").glob("*/summary.json")):
        mode, shots, _ = summary.parent.name.rsplit("_", 2)
        found.setdefault(mode, {}).setdefault(int(shots), []).append(read(summary)[figure])
    shots = sorted({k for by_shots in found.values() for k in by_shots})
    zero = read(runs / "few_shot" / "zero_shot.json")[figure]
    lines = [
        "| tuning | zero-shot | " + " | ".join(f"{k}-shot" for k in shots) + " |",
        "|---" * (len(shots) + 2) + "|",
    ]
    values = {mode: {k: np.array(v) for k, v in by_shots.items()} for mode, by_shots in found.items()}
    for mode, by_shots in values.items():
        cells = [
            f"{100 * v.mean():.1f} ({100 * v.min():.1f}-{100 * v.max():.1f})" for _, v in sorted(by_shots.items())
        ]
        lines.append(f"| {mode} | {100 * zero:.1f} | " + " | ".join(cells) + " |")
    return lines, values | {"zero_shot": {0: np.array([zero])}}


def unexpected(values: dict[str, dict[int, np.ndarray]]) -> list[str]:
    """Where more images or any tuning did not help, by means over seeds."""
    zero = float(values["zero_shot"][0].mean())
    told = []
    for mode, by_shots in values.items():
        means = [(k, float(v.mean())) for k, v in sorted(by_shots.items())]
        told += [f"{mode}: {k} shots are below zero-shot" for k, mean in means if mean < zero]
        told += [f"{mode}: {b} shots are below {a}" for (a, low), (b, high) in pairwise(means) if high < low]
    return told


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--shapes", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    lines, orders = tasks(arguments.runs, arguments.shapes), {}
    for figure in ("ap50", "ap"):
        table, values = few_shot(arguments.runs, figure)
        orders[figure] = unexpected(values)
        lines += ["", f"Another world, {figure.upper()}: mean over seeds (least-greatest)", "", *table]
    lines += ["", *(f"- not as expected, {figure}: {line}" for figure, found in orders.items() for line in found)]
    arguments.out.write_text("\n".join(lines).rstrip() + "\n")
    print(arguments.out.read_text())
    print(json.dumps({"out": str(arguments.out), "not_as_expected": orders}))


if __name__ == "__main__":
    main()
