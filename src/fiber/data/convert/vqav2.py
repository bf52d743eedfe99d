"""VQAv2 questions with the 3,129-answer vocabulary of the field.

Label i is the i-th distinct normalised `multiple_choice_answer` (train file, then val file) that at least nine
questions have. A question's targets are its raw answers that are literally in the vocabulary, with 0.3, 0.6, 0.9 and
1.0 for one, two, three and at least four of the ten annotators. Train questions without a target are left out; val
keeps them, because the official score counts every question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert import coco_folder
from fiber.data.convert.answers import normalize_answer, soft_scores
from fiber.data.convert.items import ConversionError, Drop, RawDataset, RawItem, Request, each, existing
from fiber.data.convert.json_stream import Grouped, iter_array, load

SPLITS = ("train", "val", "test", "test-dev")
OPTIONS = ("raw", "annotations", "images", "answers")

LICENCE = "questions and answers CC-BY-4.0 (VQA consortium); images: COCO, terms of Flickr"
SUBSETS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}
MIN_QUESTIONS = 9  # a label answers at least this many questions


def read(request: Request) -> RawDataset:
    """One record an image with its questions; test has no answers."""
    subset = SUBSETS[request.split]
    questions = _file(request, f"v2_OpenEnded_mscoco_{subset}_questions.json")
    annotations = None
    if request.split in ("train", "val"):
        name = f"v2_mscoco_{subset}_annotations.json"
        annotations = request.annotations or _file(request, name)
    vocabulary = load_vocabulary(request.answers) if request.answers else build_vocabulary(_answer_files(request))
    by_image = Grouped(questions, "questions", lambda entry: entry["image_id"])
    items = _items(by_image, annotations, request, set(vocabulary))
    files = [path for path in (questions, annotations) if path]
    provenance = {"converter": "vqav2", "files": {path.name: path.stat().st_size for path in files}}
    return RawDataset("vqav2", request.split, LICENCE, provenance, items, len(by_image), answers=vocabulary)


def build_vocabulary(annotations: Iterable[Path]) -> list[str]:
    """The label list from annotation files, in order of first occurrence (3,129 labels from train + val)."""
    counts: Counter[str] = Counter()
    for path in annotations:
        for entry in iter_array(path, "annotations"):
            if isinstance(entry, dict) and isinstance(entry.get("multiple_choice_answer"), str):
                counts[normalize_answer(entry["multiple_choice_answer"])] += 1
        if not counts:
            raise ConversionError(f"{path}: annotations lack 'multiple_choice_answer'; pass --answers instead")
    return [answer for answer, count in counts.items() if count >= MIN_QUESTIONS]


def load_vocabulary(path: Path) -> list[str]:
    """From a JSON list of answers, or the dataset.json of VQA shards (or their folder). Raises ConversionError."""
    content = load(path / "dataset.json" if path.is_dir() else path)
    answers = content.get("answers") if isinstance(content, dict) else content
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise ConversionError(f"{path}: expected a JSON list of answers or VQA shards with a vocabulary")
    return answers


def _file(request: Request, name: str) -> Path:
    return existing([request.raw / name, request.raw / "vqav2" / name, request.raw / "annotations" / name], name)


def _answer_files(request: Request) -> list[Path]:
    try:
        return [_file(request, f"v2_mscoco_{subset}_annotations.json") for subset in ("train2014", "val2014")]
    except ConversionError as error:
        raise ConversionError(
            f"the answer vocabulary needs the annotations of train and val (or a ready one, --answers): {error}"
        ) from None


def _items(
    by_image: Grouped[int], annotations: Path | None, request: Request, vocabulary: set[str]
) -> Iterator[RawItem | Drop]:
    answers = Grouped(annotations, "annotations", lambda entry: entry["question_id"]) if annotations else None
    subset = SUBSETS[request.split].replace("test-dev2015", "test2015")

    def items(image: int) -> Iterator[RawItem | Drop]:
        record: dict[str, Any] = {"image_id": f"coco_{image}", "source": "vqav2", "questions": []}
        drops: list[Drop] = []
        for entry in by_image[image]:
            question: dict[str, Any] = {"id": entry["question_id"], "question": entry["question"]}
            if answers is not None:
                matching = answers[entry["question_id"]]
                if not matching:
                    drops.append(Drop("question without annotation", record["image_id"], str(question["id"])))
                    continue
                question |= _answered(matching[0], vocabulary)
                if "answers" not in question:
                    lost = request.split == "train"
                    detail = f"question {question['id']}: {', '.join(sorted(set(question['raw_answers'])))}"
                    drops.append(Drop("no answer in the vocabulary", record["image_id"], detail, kept=not lost))
                    if lost:
                        continue
            record["questions"].append(question)
        if record["questions"]:
            yield RawItem(record, (coco_folder.coco_image(request, image, subset),), drops=tuple(drops))
        else:
            yield from drops
            yield Drop("no questions left", record["image_id"])

    yield from by_image.malformed("vqav2")
    yield from answers.malformed("vqav2") if answers is not None else ()
    yield from each(by_image, items, "vqav2")


def _answered(annotation: dict[str, Any], vocabulary: set[str]) -> dict[str, Any]:
    """The fields of a question that come from its annotation."""
    raw = [answer["answer"] for answer in annotation["answers"]]
    targets = [{"answer": a, "score": score} for a, score in soft_scores(raw).items() if a in vocabulary]
    fields: dict[str, Any] = {"answers": targets} if targets else {}
    kinds: dict[str, Any] = {key: annotation[key] for key in ("answer_type", "question_type") if key in annotation}
    return {"raw_answers": raw, **fields, **kinds}
