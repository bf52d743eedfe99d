"""What a model pre-trained on the shapes world has learned: figures next to their baselines, and images.

    python tools/shapes_report.py RUN --shards DIR --out DIR [--words DIR] [--world easy] [--rerank-k 20]

RUN is a stage-1 run directory or export. The shards of --shards are the gallery of retrieval, those of --words have
the captions whose words are masked (those of the gallery by default). Writes OUT/stage1.json, OUT/retrieval.png and,
for a run directory, OUT/stage1_curves.png. The last line of stdout is the JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import fiber
from fiber.cli.numbers import whole_number
from fiber.coarse.model import CoarseModel
from fiber.data.shapes import world as shapes
from fiber.data.shards import ShardSet
from fiber.evaluation.progress import Progress
from fiber.evaluation.retrieval import Retrieval, evaluate_retrieval, retrieval_sets
from fiber.evaluation.visual_words import evaluate_visual_words
from shapes_figures import draw_curves, draw_retrieval


def image_level(
    run: str, folder: Path, masked: Path, world: str, rerank_k: int, batch: int = 64
) -> tuple[dict, Retrieval]:
    """Figures of a stage-1 model, each with its baseline, and the retrieval they come from. folder: the shard set to
    retrieve from; masked: that whose words are masked."""
    predictor = fiber.load(run)
    model: CoarseModel = predictor.model
    config, progress = predictor.config, Progress(show=True)

    def sets(shards: Path) -> tuple[Iterable[dict], Iterable[dict]]:
        size, length = config.image_size, config.max_text
        return retrieval_sets(
            ShardSet(shards), predictor.tokenizer, size, length, batch=batch, swap=shapes.swap_relation
        )

    result = evaluate_retrieval(model, *sets(folder), rerank_k=rerank_k, batch=batch, progress=progress)
    groups = shapes.visual_words(shapes.WORLDS[world])
    words = evaluate_visual_words(model, *sets(masked), predictor.tokenizer, groups, batch=batch, progress=progress)
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
                ("text -> image R@1, re-ranked jointly", "joint_t2i_r1", 1),
                ("text -> image R@5, contrastive", "t2i_r5", 5),
                ("image -> text R@1, contrastive", "i2t_r1", 1),
                ("image -> text R@1, re-ranked by matching", "reranked_i2t_r1", 1),
                ("image -> text R@1, re-ranked jointly", "joint_i2t_r1", 1),
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="stage-1 run directory or export folder")
    parser.add_argument("--shards", type=Path, required=True, help="evaluation shards of the shapes world")
    parser.add_argument("--words", type=Path, help="other shards, whose words are masked")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--world", default="easy", choices=sorted(shapes.WORLDS))
    parser.add_argument(
        "--rerank-k", type=whole_number(1), default=20, help="candidates of each query that matching scores"
    )
    parser.add_argument("--queries", type=whole_number(1), default=6, help="captions in the image")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    masked = arguments.words or arguments.shards
    figures, found = image_level(arguments.run, arguments.shards, masked, arguments.world, arguments.rerank_k)
    print(table(figures))
    draw_retrieval(arguments.shards, found, arguments.out / "retrieval.png", arguments.queries)
    if (Path(arguments.run) / "metrics.jsonl").exists():
        draw_curves(Path(arguments.run), arguments.out / "stage1_curves.png")
    (arguments.out / "stage1.json").write_text(json.dumps(figures, indent=2))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
