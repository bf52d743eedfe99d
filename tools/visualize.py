"""Draw what a region-level model finds in images of a shard folder, beside the truth.

    python tools/visualize.py MODEL --shards DIR --out PNG [--field captions|expressions|boxes] [--count N]
        [--threshold T]

MODEL is an export folder, a run directory or a hub id; all images go into one PNG. Found boxes are solid and carry
their score, true ones are dashed; phrases of the caption have the colours of their boxes. The last line of stdout is
a JSON summary.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from fiber.cli.numbers import real_number, whole_number
from fiber.data.prompts import PromptBuilder
from fiber.data.shards import ShardSet
from fiber.errors import ShardError, WeightsError
from fiber.evaluation.figures import LEGEND, draw_predictions
from fiber.evaluation.region_images import EvalImage
from fiber.images.draw import tile
from fiber.tasks.region_samples import REGION_FIELDS
from fiber.weights.export import read_export
from fiber.weights.from_export import build


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the image to write, .png")
    parser.add_argument("--field", choices=REGION_FIELDS, default="captions")
    parser.add_argument("--count", type=whole_number(1), default=8)
    parser.add_argument(
        "--threshold", type=real_number(0, 1), default=0.3, help="least score of a detection (field boxes)"
    )
    arguments = parser.parse_args()
    try:
        export = read_export(arguments.model)
        shards = ShardSet(arguments.shards)
    except (WeightsError, ShardError) as error:
        parser.exit(1, f"error: {error}\n")
    if export.config.stage != "fine":
        parser.exit(1, f"error: {arguments.model} is a model at image level; it finds no boxes\n")
    if not shards.count(arguments.field):
        parser.exit(1, f"error: {arguments.shards} has no {arguments.field}\n")
    model, _ = build(export)
    try:
        figures = draw_predictions(
            model.to("cuda" if torch.cuda.is_available() else "cpu"),
            PromptBuilder(export.tokenizer, export.config.max_text),
            shards,
            arguments.field,
            EvalImage(export.config.image_size, export.config.max_image_size or sys.maxsize),
            count=arguments.count,
            threshold=arguments.threshold,
            legend=False,
        )
    except ShardError as error:
        parser.exit(1, f"error: {error}\n")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    tile(figures, note=LEGEND).save(arguments.out)
    print(json.dumps({"out": str(arguments.out), "images": len(figures)}))


if __name__ == "__main__":
    main()
