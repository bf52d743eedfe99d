"""The two figures of `shapes_report.py`: retrieval before and after re-ranking, and the curves of stage 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import yaml

from fiber.data.records import annotation_text
from fiber.data.shards import ShardSet
from fiber.evaluation.report_curves import marks
from fiber.evaluation.retrieval import Retrieval
from fiber.images.codec import decode
from fiber.images.draw import HIT

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def chosen_captions(texts: Sequence[str], changed: Sequence[int], queries: int) -> list[int]:
    """Numbers of the captions to draw, no text twice: the last half evenly spaced among `changed` (all of these where
    there are fewer), the others among all."""

    def spaced(some: list[int], count: int) -> list[int]:
        return [some[i] for i in np.linspace(0, len(some) - 1, min(count, len(some))).astype(int)]

    last = spaced(list({texts[i]: i for i in changed}.values()), queries // 2)
    drawn = {texts[i] for i in last}
    return spaced(list({t: i for i, t in enumerate(texts) if t not in drawn}.values()), queries - len(last)) + last


def draw_retrieval(folder: Path, found: Retrieval, out: Path, queries: int, top: int = 5) -> None:
    """For a few captions the best images by the dual encoder and after re-ranking, each with its rank and score; the
    true one is framed. Half of the captions are evenly spaced among all, half among those that re-ranking gains or
    loses. Above both halves, how often the first is the true one, over all captions."""
    shards = ShardSet(folder)
    images = [decode(shards.read(i).images[0][1]) for i in range(len(shards))]
    counts = shards.counts("captions").tolist()
    texts = [annotation_text(shards.record(i), "captions", a) for i, count in enumerate(counts) for a in range(count)]
    right = [
        ranking.columns[:, 0].numpy() == np.asarray(found.image_row)
        for ranking in (found.dual_text_to_image, found.joint_text_to_image)
    ]
    chosen = chosen_captions(texts, np.flatnonzero(right[0] != right[1]).tolist(), queries)
    queries = len(chosen)
    widths = {"width_ratios": [1] * top + [0.5] + [1] * top}
    size = (2 * top * 1.1, queries * 1.6 + 0.5)
    figure, axes = plt.subplots(queries, 2 * top + 1, figsize=size, squeeze=False, gridspec_kw=widths)
    for row, query in enumerate(chosen):
        axes[row, top].axis("off")
        for half, ranking in enumerate((found.dual_text_to_image, found.joint_text_to_image)):
            best = zip(ranking.columns[query, :top].tolist(), ranking.scores[query, :top].tolist(), strict=True)
            for column, (image, score) in enumerate(best):
                axis = axes[row, half * (top + 1) + column]
                axis.imshow(images[image])
                axis.set(xticks=[], yticks=[])
                axis.set_xlabel(f"{column + 1}.  {score:.2f}", fontsize=8, labelpad=3)
                right = image == found.image_row[query]
                for spine in axis.spines.values():
                    spine.set(color=HIT if right else "#cccccc", linewidth=4 if right else 1)
        axes[row, 0].set_title(f"“{texts[query]}”", loc="left", fontsize=9)
    names, figures = ("dual encoder, by cosine", "re-ranked, matching and contrast"), found.figures
    for half, (name, key) in enumerate(zip(names, ("t2i_r1", "joint_t2i_r1"), strict=True)):
        first = f"{name}: right first for {100 * figures[key]:.1f} %" if key in figures else name
        figure.text(0.02 + 0.505 * half, 1 - 0.22 / size[1], first, fontsize=10, weight="bold", va="center")
    top_margin = 1 - 0.75 / size[1]
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.3 / size[1], top=top_margin, wspace=0.08, hspace=0.55)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def draw_curves(run: Path, out: Path) -> None:
    """Losses, in-batch accuracies and gates along training, from metrics.jsonl; dashed where a phase begins. Losses
    and accuracies are means over five records; the gates of one direction go from light (first layer) to dark."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss/itc" in row]
    gates = sorted({key for row in rows for key in row if key.startswith("gate/")})
    objectives = {"itc": "contrastive", "itm": "matching", "mlm": "masked words"}
    panels = {
        "losses": {f"loss/{key}": name for key, name in objectives.items()},
        "accuracy in the batch": {
            f"accuracy/{'itc_t2i' if k == 'itc' else k}": name for k, name in objectives.items()
        },
        "gates": {
            key: key.replace("gate/i2t/", "image asks text, pair ").replace("gate/t2i/", "text asks image, pair ")
            for key in gates
        },
    }
    phases = [(step, words) for step, words in marks(yaml.safe_load((run / "config.yaml").read_text())) if step]
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6))
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for key, name in names.items():
            points = [(row["step"], row[key]) for row in rows if key in row]
            if not points:
                continue
            steps, values = (np.array(column) for column in zip(*points, strict=True))
            smooth = 1 if key in gates else min(5, len(values))
            values = np.convolve(values, np.ones(smooth) / smooth, "valid")
            shade = 0.35 + 1.2 * [g for g in gates if g[:9] == key[:9]].index(key) / len(gates) if key in gates else 0
            colour = (plt.cm.Blues if "i2t" in key else plt.cm.Oranges)(shade) if shade else None
            axis.plot(steps[smooth - 1 :], values, label=name, linewidth=1.4, color=colour)
        for step, _ in phases:
            axis.axvline(step, color="grey", linestyle="--", linewidth=0.8)
        axis.set(title=title, xlabel="step", xlim=(0, rows[-1]["step"]))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, ncols=2 if title == "gates" else 3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    figure.text(
        0.5, 0.01, "dashed: " + "; ".join(f"step {step}, {words}" for step, words in phases), ha="center", fontsize=9
    )
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(out, dpi=110)
    plt.close(figure)
