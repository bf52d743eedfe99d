"""What a region-level run evaluates: each of its sets by its annotation field, with drawn examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fiber import distributed
from fiber.config.stage2 import Stage2Config
from fiber.data.prompts import PromptBuilder
from fiber.data.shards import ShardSet
from fiber.evaluation.figures import draw_predictions
from fiber.evaluation.progress import Progress
from fiber.evaluation.regions import EvalImage, evaluate_regions
from fiber.fine.model import FiberDetector


def evaluate(
    config: Stage2Config,
    tokenizer: PreTrainedTokenizerBase,
    model: FiberDetector,
    sets: Sequence[tuple[ShardSet, str]],
    step: int,
    progress: Progress,
) -> dict[str, float]:
    """Figures of `model` on every (set, field), prefixed by the set's name where several are asked the same way, and
    by name and split where two of those have one name; predictions and a few drawn examples are left in the run's
    folder. Every rank must call and gets the same."""
    regions, output, figures = config.regions, Path(config.output), {}
    builder = PromptBuilder(tokenizer, config.max_text)
    eval_image = EvalImage(regions.test_side, regions.max_side)
    given, fields = [(shards.name, field) for shards, field in sets], [field for _, field in sets]
    for shards, field in sets:
        if given.count((shards.name, field)) > 1:
            shards.name += f"_{shards.info.get('split', shards.folder.name)}"
        asked, chunk = (builder, shards, field, eval_image), {"chunk_classes": regions.chunk_classes}
        size = {"batch": config.eval.batch, "workers": config.data.workers}
        found = evaluate_regions(model, *asked, folder=output / "predictions", progress=progress, **size, **chunk)
        if distributed.is_main():
            (output / "figures").mkdir(parents=True, exist_ok=True)
            drawn = draw_predictions(model, *asked, count=regions.figures, **chunk)
            for number, image in enumerate(drawn):
                image.save(output / "figures" / f"step_{step:06d}_{shards.name}_{field}_{number:02d}.png")
        prefix = f"{shards.name}/" if fields.count(field) > 1 else ""
        figures |= {prefix + name: value for name, value in found.items()}
    return figures
