"""One Markdown table of the image-level tasks: test scores from stage 1 and from nothing, beside their baselines.

    python tools/image_tasks_table.py DIR

DIR/TASK_START/test.json (START: stage1, scratch) holds the figures that an evaluation prints; tasks and starts that
are not there are left out. Exit status 1 where there are none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

STARTS = {"stage1": "from stage 1", "scratch": "from nothing"}
ROWS = (
    ("vqa", "questions: accuracy", "accuracy", "type_majority_accuracy", "commonest answer of each kind of question"),
    ("nlvr2", "two images: accuracy", "accuracy", "majority_accuracy", "commoner truth value"),
    ("nlvr2", "two images: consistency", "consistency", None, ""),
    ("snli_ve", "entailment: accuracy", "accuracy", "majority_accuracy", "commonest label; words alone tell 66.7"),
    ("retrieval_itc", "text -> image R@1, dual encoder", "t2i_r1", "chance_t2i_r1", "chance"),
    ("retrieval_itc", "image -> text R@1, dual encoder", "i2t_r1", "chance_t2i_r1", "chance"),
    ("retrieval_itm", "text -> image R@1, re-ranked by matching", "reranked_t2i_r1", "chance_t2i_r1", "chance"),
    ("retrieval_itm", "image -> text R@1, re-ranked by matching", "reranked_i2t_r1", "chance_t2i_r1", "chance"),
    ("caption", "captions: CIDEr", "cider", "constant_cider", "best single caption for all"),
)
"""Task, what to call the score, its figure, the figure of its baseline, and what that is."""


def read(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """start -> task -> figures. Raises ValueError where there are none."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for start in STARTS:
        for path in sorted(folder.glob(f"*_{start}/test.json")):
            found.setdefault(start, {})[path.parent.name.removesuffix(f"_{start}")] = json.loads(path.read_text())
    if not found:
        raise ValueError(f"no TASK_START/test.json in {folder}: run launch/shapes_image_tasks.sh first")
    return found


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown, all figures times 100."""
    lines = [f"| score | {' | '.join(STARTS[s] for s in found)} | baseline | |", "|---|" + "---|" * (len(found) + 2)]
    for task, name, figure, baseline, what in ROWS:
        runs = [figures.get(task) for figures in found.values()]
        if any(runs):
            cells = ["" if run is None else f"{100 * run[figure]:.1f}" for run in runs]
            known = next(run for run in runs if run)
            beside = "" if baseline is None else f"{100 * known[baseline]:.1f}"
            lines.append(f"| {name} | {' | '.join(cells)} | {beside} | {what} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    try:
        print(table(read(arguments.folder)))
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
