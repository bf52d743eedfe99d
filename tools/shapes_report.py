"""What a model pre-trained on the shapes world has learned: figures next to their baselines, and images.

    python tools/shapes_report.py RUN --shards DIR --out DIR [--world easy] [--rerank-k 20] [--queries 6]

RUN is a stage-1 run directory or export. Writes OUT/stage1.json, OUT/retrieval.png and, for a run directory,
OUT/stage1_curves.png. The last line of stdout is the JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

import fiber
from fiber.coarse.model import CoarseModel
from fiber.data.records import annotation_text
from fiber.data.shapes import world as shapes
from fiber.data.shards import ShardSet
from fiber.evaluation.progress import Progress
from fiber.evaluation.retrieval import Retrieval, evaluate_retrieval, retrieval_sets
from fiber.evaluation.visual_words import evaluate_visual_words
from fiber.images.codec import decode

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def image_level(run: str, folder: Path, world: str, rerank_k: int, batch: int = 64) -> tuple[dict, Retrieval]:
    """Figures of a stage-1 model on a shard set, each with its baseline, and the retrieval they come from."""
    predictor = fiber.load(run)
    model: CoarseModel = predictor.model
    config, shards, progress = predictor.config, ShardSet(folder), Progress(show=True)
    images, texts = retrieval_sets(
        shards, predictor.tokenizer, config.image_size, config.max_text, batch=batch, swap=shapes.swap_relation
    )
    result = evaluate_retrieval(model, images, texts, rerank_k=rerank_k, batch=batch, progress=progress)
    groups = shapes.visual_words(shapes.WORLDS[world])
    words = evaluate_visual_words(model, images, texts, predictor.tokenizer, groups, batch=batch, progress=progress)
    return {"retrieval": result.figures, "mlm_visual": words}, result


def table(figures: dict) -> str:
    """The figures as text, baselines next to them."""
    r, words = figures["retrieval"], figures["mlm_visual"]
    lines = [
        f"{'measure':44}{'score':>8}{'baseline':>10}",
        *(
            f"{name:44}{100 * r[key]:7.1f}%{100 * r['chance_t2i_r1'] * k:9.1f}%"
            for name, key, k in (
                ("text -> image R@1, contrastive", "t2i_r1", 1),
                ("text -> image R@1, re-ranked by matching", "reranked_t2i_r1", 1),
                ("text -> image R@5, contrastive", "t2i_r5", 5),
                ("image -> text R@1, contrastive", "i2t_r1", 1),
                ("image -> text R@1, re-ranked by matching", "reranked_i2t_r1", 1),
            )
        ),
        f"{'matching loss (prior beside it)':44}{r['itm_loss']:8.3f}{r['itm_prior']:10.3f}",
        *(
            f"{name:44}{100 * r[f'{key}_accuracy']:7.1f}%{50:9.1f}%"
            for name, key in (
                ("relation told from its opposite, contrastive", "contrastive_swap"),
                ("relation told from its opposite, by matching", "swap"),
            )
            if r["swap_count"]
        ),
        f"{'masked visual words (wrong image beside it)':44}{100 * words['true_image']:7.1f}%"
        f"{100 * words['wrong_image']:9.1f}%",
        *(
            f"{'  ' + kind:44}{100 * group['true_image']:7.1f}%{100 * group['wrong_image']:9.1f}%"
            for kind, group in words["by_group"].items()
        ),
    ]
    return "\n".join(lines)


def draw_retrieval(folder: Path, found: Retrieval, out: Path, queries: int, top: int = 5) -> None:
    """For a few captions, the best images by the dual encoder and after re-ranking; the true one is framed."""
    shards = ShardSet(folder)
    images = [decode(shards.read(i).images[0][1]) for i in range(len(shards))]
    counts = shards.counts("captions").tolist()
    texts = [annotation_text(shards.record(i), "captions", a) for i, count in enumerate(counts) for a in range(count)]
    chosen = np.linspace(0, len(texts) - 1, queries).astype(int)
    figure, axes = plt.subplots(queries, 2 * top, figsize=(2 * top * 1.05, queries * 1.45), squeeze=False)
    for row, query in enumerate(chosen):
        for half, scores in enumerate((found.contrastive, found.text_to_image)):
            best = np.argsort(-scores[:, query])[:top]
            for column, image in enumerate(best):
                axis = axes[row, half * top + column]
                axis.imshow(images[image])
                axis.set(xticks=[], yticks=[])
                right = image == found.image_row[query]
                for spine in axis.spines.values():
                    spine.set(color="#1a9850" if right else "#cccccc", linewidth=4 if right else 1)
        axes[row, 0].set_title(texts[query], loc="left", fontsize=9)
    figure.suptitle("text → image: dual encoder (left half), re-ranked by the fused model (right half)", fontsize=11)
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.88, wspace=0.08, hspace=0.45)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def draw_curves(run: Path, out: Path) -> None:
    """Losses, in-batch accuracies and gates along training, from metrics.jsonl."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss/itc" in row]
    panels = {
        "losses": ["loss/itc", "loss/itm", "loss/mlm"],
        "accuracy in the batch": ["accuracy/itc_t2i", "accuracy/itm", "accuracy/mlm"],
        "gates": sorted({key for row in rows for key in row if key.startswith("gate/")}),
    }
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
    for axis, (title, keys) in zip(axes, panels.items(), strict=True):
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if key in row]
            axis.plot(*zip(*points, strict=True), label=key.split("/", 1)[1], linewidth=1.2)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="stage-1 run directory or export folder")
    parser.add_argument("--shards", type=Path, required=True, help="evaluation shards of the shapes world")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--world", default="easy", choices=sorted(shapes.WORLDS))
    parser.add_argument("--rerank-k", type=int, default=20, help="candidates of each query that matching scores")
    parser.add_argument("--queries", type=int, default=6, help="captions in the image")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures, found = image_level(arguments.run, arguments.shards, arguments.world, arguments.rerank_k)
    print(table(figures))
    draw_retrieval(arguments.shards, found, arguments.out / "retrieval.png", arguments.queries)
    if (Path(arguments.run) / "metrics.jsonl").exists():
        draw_curves(Path(arguments.run), arguments.out / "stage1_curves.png")
    (arguments.out / "stage1.json").write_text(json.dumps(figures, indent=2))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
