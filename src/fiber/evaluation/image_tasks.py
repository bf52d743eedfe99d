"""Whole-set evaluation of the tasks at image level, by the official protocols.

Every rank predicts its own share and streams rows to disk; one rank merges, scores and writes what a server takes. So
figures depend neither on the number of ranks nor on the batch size, and memory not on the size of the set. Each score
has what can be had without looking beside it (`majority_accuracy`, `chance_t2i_r1`).

RUN/predictions/ (a folder a set where there are several) then holds `vqa.jsonl`, `vqa_submission.json`,
`nlvr2.jsonl`, `entailment.jsonl`, `image_to_text.json`, `text_to_image.json`, `captions.json`, as the task has it;
RUN/figures/ a few pictures, each with its words in a JSON file beside it.
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
from fiber.data.samples.text import AskedSample, Picture
from fiber.data.shards import ShardSet
from fiber.evaluation.captioning import evaluate_captions
from fiber.evaluation.loader import Share
from fiber.evaluation.metrics import nlvr2_accuracy as nlvr2
from fiber.evaluation.metrics import vqa_accuracy as vqa
from fiber.evaluation.predictions import PredictionWriter, Row, merge_predictions, read_predictions, write_results
from fiber.evaluation.progress import Meter
from fiber.evaluation.retrieval import Retrieval, evaluate_retrieval, retrieval_sets
from fiber.images.codec import decode_pil
from fiber.tasks.image_text import ClassifyTask, VqaTask

EXAMPLES = 8  # pictures of a set that are drawn
HITS = 10  # best texts of each picture, and pictures of each text, that are written

Figures = dict[str, float]
Example = tuple[int, dict[str, str]]
"""A sample's number in its set, and the words to show beside its picture."""


@dataclass(frozen=True)
class Asked:
    """A set, which of its annotations are asked about, and how. `folder`: where predictions go."""

    shards: ShardSet
    field: str
    tokenizer: PreTrainedTokenizerFast
    config: Stage1Config
    folder: Path
    meter: Meter

    def batches(self, pictures: int) -> Share:
        """This rank's batches; see `AskedSample`."""
        picture = Picture(self.config.image_size, self.config.data.transform == "pil")
        sample = AskedSample(self.tokenizer, picture, self.config.max_text, pictures)
        return Share(self.shards, self.field, sample, "annotation", self.config.eval.batch, self.config.data.workers)

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
    meter: Meter,
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
        asked = Asked(shards, field, tokenizer, config, output / "predictions" / inside, meter)
        with torch.no_grad():
            found, examples = EVALUATIONS[config.task](task, asked)
        draw(shards, examples, output / "figures", f"step_{step:06d}_{name}")
        figures |= {f"{inside}/{key}" if inside else key: value for key, value in found.items()}
    task.train(training)
    return figures


def evaluate_vqa(task: VqaTask, asked: Asked) -> tuple[Figures, list[Example]]:
    """Official accuracy, by type of answer too, beside that of the most frequent answer (of all, and of each type of
    question); and the server's file. A set without answers (test) is only predicted."""

    def row(best: int, annotation: dict[str, Any]) -> Row:
        return {"question_id": annotation["id"], "answer": task.answers[best]}

    def score(path: Path) -> Figures:
        ids = (question["id"] for question in asked.annotations())
        vqa.write_submission(asked.folder / "vqa_submission.json", ids, read_predictions(path))
        if "raw_answers" not in next(asked.annotations()):
            return {"questions": asked.shards.count(asked.field)}
        found = vqa.evaluate(asked.annotations(), read_predictions(path))
        by_type = {f"accuracy_{kind.replace('/', '_')}": value for kind, value in found["answer_type"].items()}
        return {
            "accuracy": found["accuracy"],
            "majority_accuracy": vqa.majority_accuracy(asked.annotations),
            "type_majority_accuracy": vqa.majority_accuracy(asked.annotations, "question_type"),
        } | by_type

    def show(annotation: dict[str, Any], row: Row) -> dict[str, str]:
        given = Counter(annotation.get("raw_answers", ())).most_common(3)
        answers = ", ".join(f"{answer} ({n})" for answer, n in given)
        return {"question": annotation["question"], "answers": answers, "prediction": row["answer"]}

    return _classify(task, asked, "vqa", row, ("question_id",), score, show)


def evaluate_nlvr2(task: ClassifyTask, asked: Asked) -> tuple[Figures, list[Example]]:
    """Accuracy and consistency beside the accuracy of the more frequent truth value."""

    def row(best: int, annotation: dict[str, Any]) -> Row:
        return {"id": annotation["id"], "label": bool(best)}

    def score(path: Path) -> Figures:
        if "label" not in next(asked.annotations()):
            return {"statements": asked.shards.count(asked.field)}
        figures = nlvr2.evaluate(asked.annotations(), read_predictions(path))
        return figures | {"majority_accuracy": _majority(statement["label"] for statement in asked.annotations())}

    def show(annotation: dict[str, Any], row: Row) -> dict[str, str]:
        truth = str(annotation.get("label", ""))
        return {"statement": annotation["text"], "truth": truth, "prediction": str(row["label"])}

    return _classify(task, asked, "nlvr2", row, ("id",), score, show, pictures=2)


def evaluate_entailment(task: ClassifyTask, asked: Asked) -> tuple[Figures, list[Example]]:
    """Accuracy, of each label too, beside that of the most frequent label."""

    def row(best: int, annotation: dict[str, Any]) -> Row:
        return {"id": annotation.get("id"), "label": LABELS[best]}

    def score(path: Path) -> Figures:
        right, total = Counter(), Counter()
        for annotation, predicted in zip(asked.annotations(), read_predictions(path), strict=True):
            total[annotation["label"]] += 1
            right[annotation["label"]] += annotation["label"] == predicted["label"]
        figures = {
            "accuracy": right.total() / total.total(),
            "majority_accuracy": max(total.values()) / total.total(),
        }
        return figures | {f"accuracy_{label}": right[label] / total[label] for label in LABELS if total[label]}

    def show(annotation: dict[str, Any], row: Row) -> dict[str, str]:
        return {"hypothesis": annotation["text"], "label": annotation["label"], "prediction": row["label"]}

    return _classify(task, asked, "entailment", row, ("position",), score, show)


def _classify(
    task: VqaTask | ClassifyTask,
    asked: Asked,
    name: str,
    row: Callable[[int, dict[str, Any]], Row],
    key: tuple[str, ...],
    score: Callable[[Path], Figures],
    show: Callable[[dict[str, Any], Row], dict[str, str]],
    pictures: int = 1,
) -> tuple[Figures, list[Example]]:
    """The best class of every annotation as a row of NAME.jsonl (sorted by `key`, which is unique), scored on one
    rank. row(class, annotation); score(path of the rows); show(annotation, row): words for an example."""
    with PredictionWriter(asked.folder, name, distributed.rank(), distributed.world_size()) as writer:
        for batch in asked.meter(asked.batches(pictures), name):
            on_device = {k: v.to(distributed.device()) for k, v in batch.items() if isinstance(v, Tensor)}
            best = task.logits(on_device).argmax(-1).tolist()
            for entry in zip(best, batch["annotation"], batch["position"].tolist(), strict=True):
                writer.add(row(*entry[:2]) | {"position": entry[2]})
    distributed.barrier()
    figures, examples = None, []
    if distributed.is_main():
        path = merge_predictions(asked.folder, name, distributed.world_size(), key)
        figures = score(path)
        total = asked.shards.count(asked.field)
        chosen = set(np.linspace(0, total - 1, min(EXAMPLES, total)).round().astype(int).tolist())
        for predicted in read_predictions(path):
            if predicted["position"] in chosen:
                number, annotation = asked.place(predicted["position"])
                examples.append((number, show(annotation, predicted)))
    return distributed.broadcast_object(figures), examples


def _majority(labels: Iterator[Any]) -> float:
    counts = Counter(labels)
    return max(counts.values()) / counts.total()


# ---------------------------------------------------------------------------------------------- retrieval


def evaluate_search(task: nn.Module, asked: Asked) -> tuple[Figures, list[Example]]:
    """Recall both ways (`evaluate_retrieval`), and the best hits of every picture and of every text as JSON."""
    config = asked.config
    images, texts = retrieval_sets(
        asked.shards,
        asked.tokenizer,
        config.image_size,
        config.max_text,
        batch=config.eval.batch,
        workers=config.data.workers,
        field=asked.field,
        exact=config.data.transform == "pil",
    )
    size = {"rerank_k": config.eval.rerank_k, "batch": config.eval.batch}
    found = evaluate_retrieval(task.model, images, texts, **size, meter=asked.meter)
    return found.figures, write_hits(found, asked) if distributed.is_main() else []


def write_hits(found: Retrieval, asked: Asked) -> list[Example]:
    """`image_to_text.json`: each picture's best texts, with score and whether they are its own;
    `text_to_image.json`: each text's best pictures. -> a few pictures with their best texts."""
    numbers = np.flatnonzero(asked.shards.counts(asked.field)).tolist()
    image_ids, words = [], []
    for number in numbers:
        record = asked.shards.record(number)
        image_ids.append(record["image_id"])
        words += [annotation_text(record, asked.field, i) for i in range(len(record[asked.field]))]
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
    write_results(asked.folder / "image_to_text.json", by_image)
    write_results(asked.folder / "text_to_image.json", by_text)
    chosen = np.linspace(0, len(numbers) - 1, min(EXAMPLES, len(numbers))).round().astype(int).tolist()
    return [(numbers[row], _hits_in_words(by_image[row]["texts"])) for row in chosen]


def best(scores: np.ndarray) -> list[int]:
    """The columns of the highest of `scores` (C,), best first, ties to the higher column as recall has them."""
    return (len(scores) - 1 - np.argsort(-scores[::-1], kind="stable")[:HITS]).tolist()


def _hits_in_words(texts: list[dict[str, Any]]) -> dict[str, str]:
    """The five best texts; * marks the picture's own."""
    return {f"hit {i}": f"{'* ' if t['own'] else ''}{t['text']}" for i, t in enumerate(texts[:5], start=1)}


# ---------------------------------------------------------------------------------------------- examples


def draw(shards: ShardSet, examples: list[Example], folder: Path, name: str) -> None:
    """FOLDER/NAME_NN.png, the picture or pair of each example, and its words in NAME_NN.json."""
    for number, (sample, words) in enumerate(examples):
        pictures = [decode_pil(data) for _, data in shards.read(sample).images]
        width, height = sum(picture.width for picture in pictures), max(picture.height for picture in pictures)
        sheet, x = Image.new("RGB", (width, height), "white"), 0
        for picture in pictures:
            sheet.paste(picture, (x, 0))
            x += picture.width
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / f"{name}_{number:02d}.png")
        (folder / f"{name}_{number:02d}.json").write_text(json.dumps(words, ensure_ascii=False))


EVALUATIONS: dict[str, Callable[[Any, Asked], tuple[Figures, list[Example]]]] = {
    "pretrain": evaluate_search,
    "vqa": evaluate_vqa,
    "nlvr2": evaluate_nlvr2,
    "entailment": evaluate_entailment,
    "retrieval_itc": evaluate_search,
    "retrieval_itm": evaluate_search,
    "caption": evaluate_captions,
}
