"""Visual Genome: region descriptions (default; text with its box) or question answers.

Images that are also COCO's get COCO's image id (image_data.json tells), so leakage into COCO's test sets shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert.answers import normalize_answer
from fiber.data.convert.items import Drop, RawDataset, RawItem, Request, each, existing, image_in
from fiber.data.convert.json_stream import iter_array
from fiber.data.convert.vqav2 import load_vocabulary
from fiber.data.records import clean_text

SPLITS = ("all",)
VARIANTS = ("regions", "questions")
OPTIONS = ("raw", "annotations", "images", "answers")

LICENCE = "annotations CC-BY-4.0 (Visual Genome); images: YFCC100M and COCO, terms of Flickr"
FILES = {"regions": "region_descriptions.json", "questions": "question_answers.json"}


def read(request: Request) -> RawDataset:
    """One record per image: captions with phrases and boxes, or questions."""
    raw, name = request.raw, FILES[request.variant or VARIANTS[0]]
    places = [raw / "annotations" / name, raw / name]
    path = existing([request.annotations] if request.annotations else places, name)
    about, notes = image_data(raw)
    vocabulary = load_vocabulary(request.answers) if request.answers else None
    items = _regions(path, request, about) if request.variant == "regions" else _questions(
        path, request, about, vocabulary
    )  # fmt: skip
    provenance = {"converter": "visual_genome", "variant": request.variant, "file": path.name,
                  "bytes": path.stat().st_size, "image_data": bool(about)}  # fmt: skip
    kind = "" if request.variant == "regions" else "_questions"
    return RawDataset(f"visual_genome{kind}", request.split, LICENCE, provenance, items, len(about) or None,
                  answers=vocabulary, notes=notes, repeats=True)  # fmt: skip  # two images may be one of COCO's


def image_data(raw: Path) -> tuple[dict[int, tuple[int, int, str]], list[str]]:
    """number -> (width, height, image id) from image_data.json if it is there, and what to tell the user if not."""
    path = next((p for p in (raw / "annotations" / "image_data.json", raw / "image_data.json") if p.exists()), None)
    if path is None:
        return {}, ["no image_data.json: which Visual Genome images are COCO's is not known, leaks do not show"]
    return {
        entry["image_id"]: (
            entry["width"],
            entry["height"],
            f"coco_{entry['coco_id']}" if entry.get("coco_id") else f"vg_{entry['image_id']}",
        )
        for entry in iter_array(path)
        if isinstance(entry, dict) and {"image_id", "width", "height"} <= entry.keys()
    }, []


def _common(entry: dict[str, Any], request: Request, about: dict) -> tuple[int, dict[str, Any]]:
    """(image number, arguments of an RawItem without its record)."""
    number = entry["id"]
    width, height, _ = about.get(number, (None, None, None))
    folders = (
        [request.images]
        if request.images
        else [root / folder for root in (request.raw / "images", request.raw) for folder in ("VG_100K", "VG_100K_2")]
    )
    image = image_in(folders, f"{number}.jpg")
    return number, {"images": (image,), "size": (width, height) if width else None}


def _identity(number: int, about: dict) -> dict[str, Any]:
    return {"image_id": about[number][2] if number in about else f"vg_{number}", "source": "vg"}


def _regions(path: Path, request: Request, about: dict) -> Iterator[RawItem | Drop]:
    def items(entry: dict[str, Any]) -> Iterator[RawItem | Drop]:
        number, where = _common(entry, request, about)
        record = _identity(number, about)
        captions: dict[str, dict[str, Any]] = {}
        boxes, drops = [], []
        for region in entry["regions"]:
            text = clean_text(region["phrase"])
            x, y = region["x"], region["y"]
            boxes.append({"box": [x, y, x + region["width"], y + region["height"]], "id": region["region_id"]})
            if not text:
                drops.append(Drop("empty text", record["image_id"], f"region {region['region_id']}"))
            elif text in captions:  # the same words for another region: one caption, both boxes
                captions[text]["phrases"][0]["boxes"].append(len(boxes) - 1)
                drops.append(Drop("repeated text, boxes joined", record["image_id"], text, kept=True))
            else:
                phrase = {"span": [[0, len(text)]], "boxes": [len(boxes) - 1]}
                captions[text] = {"text": text, "phrases": [phrase]}
        if not captions:
            yield Drop("no regions", record["image_id"])
            return
        yield RawItem({**record, "captions": list(captions.values()), "boxes": boxes}, drops=tuple(drops), **where)

    return each(iter_array(path), items, "vg")


def _questions(path: Path, request: Request, about: dict, vocabulary: list[str] | None) -> Iterator[RawItem | Drop]:
    """Answers are normalised as VQAv2's. With a vocabulary, questions whose answer is not in it are left out."""
    known = None if vocabulary is None else set(vocabulary)

    def items(entry: dict[str, Any]) -> Iterator[RawItem | Drop]:
        number, where = _common(entry, request, about)
        record = _identity(number, about)
        questions, drops = [], []
        for qa in entry["qas"]:
            answer = normalize_answer(qa["answer"])
            if not answer or (known is not None and answer not in known):
                reason = "answer not in the vocabulary" if answer else "empty answer"
                drops.append(Drop(reason, record["image_id"], f"question {qa['qa_id']}: {qa['answer']!r}"))
                continue
            questions.append({
                "id": qa["qa_id"],
                "question": qa["question"],
                "answers": [{"answer": answer, "score": 1.0}],
                "raw_answers": [qa["answer"]] * 10,  # one annotator; repeated, so that accuracy can reach 1
            })  # fmt: skip
        if not questions:
            yield from drops
            yield Drop("no questions", record["image_id"])
            return
        yield RawItem({**record, "questions": questions}, where["images"], drops=tuple(drops))

    return each(iter_array(path), items, "vg")
