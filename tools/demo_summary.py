"""Gather what the demo found into OUT/summary.json and print it as a table.

python tools/demo_summary.py OUT --began UNIX_SECONDS
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml

from fiber.cli.numbers import real_number


def training(run: Path) -> dict[str, Any]:
    """Steps, seconds of training and samples per second of a run, from its metrics."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "seconds/step" in row]
    spans = [
        (row["step"] + 1 - before, row)
        for before, row in zip([0, *(r["step"] + 1 for r in rows)], rows, strict=False)
    ]
    seconds = sum(steps * row["seconds/step"] for steps, row in spans)
    pairs = sum(steps * row["seconds/step"] * row["pairs_per_second"] for steps, row in spans)
    return {
        "steps": rows[-1]["step"] + 1,
        "seconds": round(seconds, 1),
        "pairs_per_second": round(pairs / seconds, 1),
    }


def summarise(out: Path, began: float) -> dict[str, Any]:
    """The contents of summary.json: fractions 0..1, seconds."""
    found = json.loads((out / "figures" / "stage1.json").read_text())
    retrieval, words = found["retrieval"], found["mlm_visual"]
    regions = json.loads((out / "stage2" / "summary.json").read_text())["eval"]
    config = yaml.safe_load((out / "stage1" / "config.yaml").read_text())
    keys = ["i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5"]
    keys += [f"{how}_{way}_r1" for how in ("reranked", "joint") for way in ("i2t", "t2i")]
    return {
        "stage1": training(out / "stage1")
        | {
            "towers": "pretrained" if config["model"]["image"]["pretrained"] else "scratch",
            "retrieval": {key: retrieval[key] for key in keys} | {"candidates": retrieval["images"]},
            "mlm_visual": {key: words[key] for key in ("true_image", "wrong_image")},
            "itm": {"loss": retrieval["itm_loss"], "prior": retrieval["itm_prior"]},
        },
        "stage2": training(out / "stage2")
        | {key: regions[key] for key in ("grounding_r1", "grounding_r5", "class_agnostic_r1", "ap50")},
        "total_seconds": round(time.time() - began, 1),
    }


def table(summary: dict[str, Any]) -> str:
    """Score beside baseline, a line each."""
    one, two = summary["stage1"], summary["stage2"]
    r, chance = one["retrieval"], 1 / one["retrieval"]["candidates"]
    rows = [
        ("stage 1  text -> image R@1 (chance)", r["t2i_r1"], chance),
        ("stage 1  image -> text R@1 (chance)", r["i2t_r1"], chance),
        ("stage 1  text -> image R@1, re-ranked (contrastive)", r["joint_t2i_r1"], r["t2i_r1"]),
        ("stage 1  image -> text R@1, re-ranked (contrastive)", r["joint_i2t_r1"], r["i2t_r1"]),
        ("stage 1  text -> image R@1, by matching alone", r["reranked_t2i_r1"], r["t2i_r1"]),
        ("stage 1  image -> text R@1, by matching alone", r["reranked_i2t_r1"], r["i2t_r1"]),
        ("stage 1  masked visual words (wrong image)", *one["mlm_visual"].values()),
        ("stage 1  matching loss (prior)", *one["itm"].values()),
        ("stage 2  grounding R@1 (class-agnostic)", two["grounding_r1"], two["class_agnostic_r1"]),
        ("stage 2  box AP50", two["ap50"], None),
    ]
    lines = [f"{'':54}{'score':>8}{'baseline':>10}"]
    lines += [f"{name:54}{score:8.3f}" + (f"{base:10.3f}" if base is not None else "") for name, score, base in rows]
    speed = [
        f"{name}: {summary[name]['steps']} steps in {summary[name]['seconds']:.0f} s" for name in ("stage1", "stage2")
    ]
    start = "from nothing"
    if one["towers"] == "pretrained":
        start = "from the package's towers, of a longer run of both stages"
    return "\n".join([*lines, f"{start}; {'; '.join(speed)}; {summary['total_seconds']:.0f} s in all"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the demo")
    parser.add_argument("--began", type=real_number(0), required=True, help="when the demo began, seconds since 1970")
    arguments = parser.parse_args()
    summary = summarise(arguments.out, arguments.began)
    (arguments.out / "summary.json").write_text(json.dumps(summary, indent=2))
    print(table(summary))
    print(f"\n{arguments.out / 'summary.json'}; images in {arguments.out / 'figures'}")
    print(f"to look at in a browser: {arguments.out / 'report' / 'index.html'}")


if __name__ == "__main__":
    main()
