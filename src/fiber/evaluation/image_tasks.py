"""Whole-set evaluation of the tasks at image level, by the official protocols.

Every rank predicts its own share and streams rows to disk; one rank merges, scores and writes what a server takes. So
figures depend neither on the number of ranks nor on the batch size, and memory not on the size of the set. Each score
has what can be had without looking beside it (`majority_accuracy`, `chance_t2i_r1`).

RUN/predictions/ (a folder per set where there are several) then holds `vqa.jsonl`, `vqa_submission.json`,
`nlvr2.jsonl`, `entailment.jsonl`, `image_to_text.json`, `text_to_image.json`, `captions.json`, as the task has it;
RUN/figures/ a few images, each with its words in a JSON file beside it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from fiber import distributed
from fiber.config.stage1 import Stage1Config
from fiber.data.records import LABELS, annotation_text
from fiber.data.samples.text import AskedSample, ImageTransform
from fiber.data.shards import ShardSet
from fiber.evaluation.captioning import evaluate_captions
from fiber.evaluation.loader import EvalLoader
from fiber.evaluation.metrics import nlvr2_accuracy as nlvr2
from fiber.evaluation.metrics import vqa_accuracy as vqa
from fiber.evaluation.predictions import PredictionWriter, Row, merge_predictions, read_predictions, write_results
from fiber.evaluation.progress import Progress
from fiber.evaluation.retrieval import Retrieval, evaluate_retrieval, retrieval_sets
from fiber.images.codec import decode_pil
from fiber.tasks.image_text import ClassifyTask, VqaTask

EXAMPLES = 8  # images of a set that are drawn
HITS = 10  # best texts of each image, and images of each text, that are written

Figures = dict[str, float]
Example = tuple[int, dict[str, str]]
"""A sample's number in its set, and the words to show beside its image."""


@dataclass(frozen=True)
class EvalContext:
    """A set, which of its annotations are context about, and how. `folder`: where predictions go."""

    shards: ShardSet
    field: str
    tokenizer: PreTrainedTokenizerFast
    config: Stage1Config
    folder: Path
    progress: Progress

    def batches(self, images: int) -> EvalLoader:
        """This rank's batches; see `AskedSample`."""
        transform = ImageTransform(self.config.image_size, self.config.data.transform == "pil")
        sample = AskedSample(self.tokenizer, transform, self.config.max_text, images)
        return EvalLoader(
            self.shards, self.field, sample, "annotation", self.config.eval.batch, self.config.data.workers
        )

    def annotations(self) -> Iterator[dict[str, Any]]:
        """All annotations in the order of their positions."""
        for number in np.flatnonzero(self.shards.counts(self.field)).tolist():
            yield from self.shards.record(number)[self.field]

    def place(self, position: int) -> tuple[int, dict[str, Any]]:
        """Sample number and annotation of a position."""
        ends = np.cumsum(self.shards.counts(self.field))
        number = int(np.searchsorted(ends, position, side="right"))
        own = self.shards.record(number)[self.field]
        return number, own[position - int(ends[number]) + len(own)]


def evaluate(
    config: Stage1Config,
    tokenizer: PreTrainedTokenizerFast,
    task: nn.Module,
    sets: Sequence[tuple[ShardSet, str]],
    step: int,
    progress: Progress,
) -> Figures:
    """Figures of `task` on every (set, field), prefixed by the set's name where there are several; a few drawn
    examples in the run's `figures/`. Every rank must call and gets the same. The task's mode is put back."""
    training, figures, output = task.training, {}, Path(config.output)
    task.eval()
    names = [shards.name for shards, _ in sets]
    if len(set(names)) < len(names):
        names = [f"{shards.name}_{shards.info.get('split', i)}" for i, (shards, _) in enumerate(sets)]
    for name, (shards, field) in zip(names, sets, strict=True):
        inside = name if len(sets) > 1 else ""
        context = EvalContext(shards, field, tokenizer, config, output / "predictions" / inside, progress)
        with torch.no_grad():
            found, examples = EVALUATIONS[config.task](task, context)
        draw(shards, examples, output / "figures", f"step_{step:06d}_{name}")
        figures |= {f"{inside}/{key}" if inside else key: value for key, value in found.items()}
    task.train(training)
    return figures


def evaluate_vqa(task: VqaTask, context: EvalContext) -> tuple[Figures, list[Example]]:
    """Official accuracy, by type of answer too, beside that of the most frequent answer (of all, and of each type of
    question); and the server's file. A set without answers (test) is only predicted."""

    def row(best: int, annotation: dict[str, Any]) -> Row:
        return {"question_id": annotation["id"], "answer": task.answers[best]}

    def score(path: Path) -> Figures:
        ids = (question["id"] for question in context.annotations())
        vqa.write_submission(context.folder / "vqa_submission.json", ids, read_predictions(path))
        if "raw_answers" not in next(context.annotations()):
            return {"questions": context.shards.count(context.field)}
        found = vqa.evaluate(context.annotations(), read_predictions(path))
        by_type = {f"accuracy_{kind.replace('/', '_')}": value for kind, value in found["answer_type"].items()}
        return {
            "accuracy": found["accuracy"],
            "majority_accuracy": vqa.majority_accuracy(context.annotations),
            "type_majority_accuracy": vqa.majority_accuracy(context.annotations, "question_type"),
        } | by_type

    def show(annotation: dict[str, Any], row: Row) -> dict[str, str]:
        given = Counter(annotation.get("raw_answers", ())).most_common(3)
        answers = ", ".join(f"{answer} ({n})" for answer, n in given)
        return {"question": annotation["question"], "answers": answers, "prediction": row["answer"]}

    return _classify(task, context, "vqa", row, ("question_id",), score, show)


def evaluate_nlvr2(task: ClassifyTask, context: EvalContext) -> tuple[Figures, list[Example]]:
    """Accuracy and consistency beside the accuracy of the more frequent truth value."""

    def row(best: int, annotation: dict[str, Any]) -> Row:
        return {"id": annotation["id"], "label": bool(best)}

    def score(path: Path) -> Figures:
        if "label" not in next(context.annotations()):
            return {"statements": context.shards.count(context.field)}
        figures = nlvr2.evaluate(context.annotations(), read_predictions(path))
        return figures | {"majority_accuracy": _majority(statement["label"] for statement in context.annotations())}

    def show(annotation: dict[str, Any], row: Row) -> dict[str, str]:
        truth = str(annotation.get("label", ""))
        return {"statement": annotation["text"], "truth": truth, "prediction": str(row["label"])}

    return _classify(task, context, "nlvr2", row, ("id",), score, show, images=2)


def evaluate_entailment(task: ClassifyTask, context: EvalContext) -> tuple[Figures, list[Example]]:
    """Accuracy, of each label too, beside that of the most frequent label."""

    def row(best: int, annotation: dict[str, Any]) -> Row:
        return {"id": annotation.get("id"), "label": LABELS[best]}

    def score(path: Path) -> Figures:
        right, total = Counter(), Counter()
        for annotation, predicted in zip(context.annotations(), read_predictions(path), strict=True):
            total[annotation["label"]] += 1
            right[annotation["label"]] += annotation["label"] == predicted["label"]
        figures = {
            "accuracy": right.total() / total.total(),
            "majority_accuracy": max(total.values()) / total.total(),
        }
        return figures | {f"accuracy_{label}": right[label] / total[label] for label in LABELS if total[label]}

    def show(annotation: dict[str, Any], row: Row) -> dict[str, str]:
        return {"hypothesis": annotation["text"], "label": annotation["label"], "prediction": row["label"]}

    return _classify(task, context, "entailment", row, ("position",), score, show)


def _classify(
    task: VqaTask | ClassifyTask,
    context: EvalContext,
    name: str,
    row: Callable[[int, dict[str, Any]], Row],
    key: tuple[str, ...],
    score: Callable[[Path], Figures],
    show: Callable[[dict[str, Any], Row], dict[str, str]],
    images: int = 1,
) -> tuple[Figures, list[Example]]:
    """The best class of every annotation as a row of NAME.jsonl (sorted by `key`, which is unique), scored on one
    rank. row(class, annotation); score(path of the rows); show(annotation, row): words for an example."""
    with PredictionWriter(context.folder, name, distributed.rank(), distributed.world_size()) as writer:
        for batch in context.progress(context.batches(images), name):
            on_device = {k: v.to(distributed.device()) for k, v in batch.items() if isinstance(v, Tensor)}
            best = task.logits(on_device).argmax(-1).tolist()
            for entry in zip(best, batch["annotation"], batch["position"].tolist(), strict=True):
                writer.add(row(*entry[:2]) | {"position": entry[2]})
    distributed.barrier()
    figures, examples = None, []
    if distributed.is_main():
        path = merge_predictions(context.folder, name, distributed.world_size(), key)
        figures = score(path)
        total = context.shards.count(context.field)
        chosen = set(np.linspace(0, total - 1, min(EXAMPLES, total)).round().astype(int).tolist())
        for predicted in read_predictions(path):
            if predicted["position"] in chosen:
                number, annotation = context.place(predicted["position"])
                examples.append((number, show(annotation, predicted)))
    return distributed.broadcast_object(figures), examples


def _majority(labels: Iterator[Any]) -> float:
    counts = Counter(labels)
    return max(counts.values()) / counts.total()


# ---------------------------------------------------------------------------------------------- retrieval


def evaluate_retrieval_task(task: nn.Module, context: EvalContext) -> tuple[Figures, list[Example]]:
    """Recall both ways (`evaluate_retrieval`), and the best hits of every image and of every text as JSON."""
    config = context.config
    images, texts = retrieval_sets(
        context.shards,
        context.tokenizer,
        config.image_size,
        config.max_text,
        batch=config.eval.batch,
        workers=config.data.workers,
        field=context.field,
        pil_resize=config.data.transform == "pil",
    )
    size = {"rerank_k": config.eval.rerank_k, "batch": config.eval.batch}
    found = evaluate_retrieval(task.model, images, texts, **size, progress=context.progress)
    return found.figures, write_hits(found, context) if distributed.is_main() else []


def write_hits(found: Retrieval, context: EvalContext) -> list[Example]:
    """`image_to_text.json`: each image's best texts, with score and whether they are its own;
    `text_to_image.json`: each text's best images. -> a few images with their best texts."""
    numbers = np.flatnonzero(context.shards.counts(context.field)).tolist()
    image_ids, words = [], []
    for number in numbers:
        record = context.shards.record(number)
        image_ids.append(record["image_id"])
        words += [annotation_text(record, context.field, i) for i in range(len(record[context.field]))]
    by_image = [
        {
            "image_id": image_ids[row],
            "texts": [
                {"text": words[t], "score": float(scores[t]), "own": bool(found.image_row[t] == row)}
                for t in best(scores)
            ],
        }
        for row, scores in enumerate(found.image_to_text)
    ]
    by_text = (
        {
            "text": words[t],
            "image_id": image_ids[found.image_row[t]],
            "images": [{"image_id": image_ids[row], "score": float(scores[row])} for row in best(scores)],
        }
        for t, scores in enumerate(found.text_to_image.T)
    )
    write_results(context.folder / "image_to_text.json", by_image)
    write_results(context.folder / "text_to_image.json", by_text)
    chosen = np.linspace(0, len(numbers) - 1, min(EXAMPLES, len(numbers))).round().astype(int).tolist()
    return [(numbers[row], _hits_in_words(by_image[row]["texts"])) for row in chosen]


def best(scores: np.ndarray) -> list[int]:
    """The columns of the highest of `scores` (C,), best first, ties to the higher column as recall has them."""
    return (len(scores) - 1 - np.argsort(-scores[::-1], kind="stable")[:HITS]).tolist()


def _hits_in_words(texts: list[dict[str, Any]]) -> dict[str, str]:
    """The five best texts; * marks the image's own."""
    return {f"hit {i}": f"{'* ' if t['own'] else ''}{t['text']}" for i, t in enumerate(texts[:5], start=1)}


# ---------------------------------------------------------------------------------------------- examples


def draw(shards: ShardSet, examples: list[Example], folder: Path, name: str) -> None:
    """FOLDER/NAME_NN.png, the image or pair of each example, and its words in NAME_NN.json."""
    for number, (sample, words) in enumerate(examples):
        images = [decode_pil(data) for _, data in shards.read(sample).images]
        width, height = sum(image.width for image in images), max(image.height for image in images)
        sheet, x = Image.new("RGB", (width, height), "white"), 0
        for image in images:
            sheet.paste(image, (x, 0))
            x += image.width
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / f"{name}_{number:02d}.png")
        (folder / f"{name}_{number:02d}.json").write_text(json.dumps(words, ensure_ascii=False))


EVALUATIONS: dict[str, Callable[[Any, EvalContext], tuple[Figures, list[Example]]]] = {
    "pretrain": evaluate_retrieval_task,
    "vqa": evaluate_vqa,
    "nlvr2": evaluate_nlvr2,
    "entailment": evaluate_entailment,
    "retrieval_itc": evaluate_retrieval_task,
    "retrieval_itm": evaluate_retrieval_task,
    "caption": evaluate_captions,
}
