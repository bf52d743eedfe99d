"""What an evaluation works with, and the walk over the sets of `eval.data`.

Every rank predicts its own share and streams rows to disk; one rank merges, scores and writes what a server takes. So
figures depend neither on the number of ranks nor on the batch size, and memory not on the size of the set. Each score
has what can be had without looking next to it (`majority_accuracy`, `chance_t2i_r1`, `class_agnostic_r1`).

RUN/predictions/ (a folder per set where there are several) then holds the rows and the server's files, and
`evaluated.json`: the step, and of each set its name, field, path, folder and figures. RUN/figures/ holds a few images
of each set with their words, which also lie in a JSON file of the same name.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from fiber import distributed
from fiber.data.shards import ShardSet
from fiber.evaluation.progress import Progress
from fiber.images.codec import decode_pil
from fiber.images.draw import draw_lines, tile
from fiber.training.folder import write_whole
from fiber.training.task import Figures, Sets, TaskModule

EVALUATED = "evaluated.json"  # in RUN/predictions: what was evaluated
EXAMPLES = 8  # images of a set that are drawn

Example = tuple[int, dict[str, str]]
"""A sample's number in its set, and the words to show next to its image."""


@dataclass(frozen=True)
class EvalContext:
    """A set, which of its annotations are evaluated, and how. `config`: of the run. `folder`: where predictions go.
    `figures`: where examples are drawn, FIGURES_NN.png; None where nothing is drawn."""

    shards: ShardSet
    field: str
    tokenizer: PreTrainedTokenizerFast
    config: Any
    folder: Path
    progress: Progress
    figures: Path | None = None

    def annotations(self) -> Iterator[dict[str, Any]]:
        """All annotations in the order of their positions."""
        for number in np.flatnonzero(self.shards.counts(self.field)).tolist():
            yield from self.shards.record(number)[self.field]

    def sample_of(self, position: int) -> tuple[int, dict[str, Any]]:
        """Sample number and annotation of a position."""
        ends = np.cumsum(self.shards.counts(self.field))
        number = int(np.searchsorted(ends, position, side="right"))
        entries = self.shards.record(number)[self.field]
        return number, entries[position - int(ends[number]) + len(entries)]

    def draw(self, examples: Sequence[Example]) -> None:
        """Write the image or pair of each example, and its words. Rank 0 only."""
        if self.figures is None:
            return
        self.figures.parent.mkdir(parents=True, exist_ok=True)
        for number, (sample, words) in enumerate(examples):
            name = f"{self.figures.name}_{number:02d}"
            images = [decode_pil(data) for _, data in self.shards.read(sample).images]
            lines = [(f"{key}: {text}", (), ()) for key, text in words.items()]
            draw_lines(tile(images, len(images)), lines).save(self.figures.with_name(f"{name}.png"))
            self.figures.with_name(f"{name}.json").write_text(json.dumps(words, ensure_ascii=False))


def evaluate_sets(
    evaluate: Callable[[Any, EvalContext], Figures],
    config: Any,
    tokenizer: PreTrainedTokenizerFast,
    task: TaskModule,
    sets: Sets,
    step: int | None,
    beat: Callable[[], None] = lambda: None,
) -> Figures:
    """Figures of `task` on every (set, field) by `evaluate`, with the set's name before them where several sets have
    one field; predictions and a few drawn examples stay in the run's folder. Every rank must call and gets the same.
    The task's mode is put back.

    step None: a rehearsal, on the first batch of each set alone; nothing of it stays, and nothing is drawn.
    """
    figures: Figures = {}
    evaluated: list[dict[str, Any]] = []
    training, output = task.training, Path(config.output)
    predictions = output / "predictions" if step is not None else output / ".rehearsal"
    fields = Counter(field for _, field in sets)
    task.eval()
    for name, (shards, field) in zip(unique_names(sets), sets, strict=True):
        samples = None if step is not None else _first_batch(shards, field, config.eval.batch)
        several = len(sets) > 1
        context = EvalContext(
            shards.view(name, samples),
            field,
            tokenizer,
            config,
            predictions / name if several else predictions,
            Progress(show=step is not None, beat=beat),
            None if step is None else output / "figures" / f"step_{step:06d}_{name}",
        )
        with torch.no_grad():
            scores = evaluate(task, context)
        prefix = f"{name}/" if fields[field] > 1 or figures.keys() & scores.keys() else ""
        figures |= {prefix + key: value for key, value in scores.items()}
        folder = str(context.folder.relative_to(predictions))
        evaluated.append({"name": name, "field": field, "folder": folder, "figures": scores} | _whereabouts(shards))
    task.train(training)
    if step is None:
        distributed.barrier()
        if distributed.is_main():
            shutil.rmtree(predictions, ignore_errors=True)
    elif distributed.is_main() and evaluated:
        predictions.mkdir(parents=True, exist_ok=True)
        write_whole(predictions / EVALUATED, json.dumps({"step": step, "sets": evaluated}, indent=1))
    return figures


def _whereabouts(shards: ShardSet) -> dict[str, Any]:
    """Where a set lies (of a URL no secrets), how to tell whether it is still the same, and its size."""
    path = shards.where if shards.remote else str(Path(shards.path).resolve())
    return {"path": path, "fingerprint": shards.fingerprint, "images": len(shards)}


def unique_names(sets: Sets) -> list[str]:
    """A name for each (set, field), so that no figures and files overwrite each other: the set's name; where two of
    one field have the same, with the split, then with the folder, then with a number. What had to be told apart is
    said once on stderr."""
    names = [shards.name for shards, _ in sets]
    keys = [(name, field) for name, (_, field) in zip(names, sets, strict=True)]
    for marks in (
        [str(shards.info.get("split", "")) for shards, _ in sets],
        [shards.folder.name for shards, _ in sets],
        [str(number) for number in range(len(sets))],
    ):
        counts = Counter(keys)
        if max(counts.values(), default=1) == 1:
            break
        names = [
            f"{n}_{mark}" if counts[k] > 1 and mark else n for n, k, mark in zip(names, keys, marks, strict=True)
        ]
        keys = [(name, field) for name, (_, field) in zip(names, sets, strict=True)]
    if distributed.is_main() and names != [shards.name for shards, _ in sets]:
        print(f"evaluation sets of one name are told apart as {', '.join(names)}", file=sys.stderr)
    return names


def _first_batch(shards: ShardSet, field: str, batch: int) -> int:
    """How many samples hold a batch of annotations for every rank, or all; of a set without any, images count."""
    counts = shards.counts(field)
    items = np.cumsum(counts if counts.any() else np.ones_like(counts))
    return min(int(np.searchsorted(items, batch * distributed.world_size())) + 1, len(shards))
