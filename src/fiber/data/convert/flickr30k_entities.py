"""Flickr30k Entities from its sentences and XML boxes: captions whose phrases have boxes.

Boxes are the numbers of the XML files as they stand. (The data set's own Python tool subtracts 1 from each; MDETR,
GLIP and FIBER do not, and the published recalls are on unshifted boxes, so a shift would only add an offset.)
The split is the Entities' own (train.txt, val.txt, test.txt), not Karpathy's.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiber.data.convert.flickr30k import LICENCE, image
from fiber.data.convert.items import ConversionError, Drop, RawDataset, RawItem, Request, existing
from fiber.data.convert.json_stream import open_text

__all__ = ["LICENCE", "OPTIONS", "SPLITS", "BoxedPhrase", "parse_boxes", "parse_sentence", "read"]

SPLITS = ("train", "val", "test")
OPTIONS = ("raw", "images")
NOT_VISUAL = "0"  # the chain of phrases that name nothing to see

_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s/\]]+)+) ([^\]]*)\]")


@dataclass(frozen=True)
class BoxedPhrase:
    """A marked phrase of a sentence. start, end: characters [start, end) of the plain sentence."""

    text: str
    chain: str
    types: tuple[str, ...]
    start: int
    end: int


def parse_sentence(markup: str) -> tuple[str, list[BoxedPhrase]]:
    """``[/EN#1/people Two men] walk .`` -> ("Two men walk .", phrases). Raises ConversionError on broken markup."""
    plain, phrases, at = "", [], 0
    for match in _PHRASE.finditer(markup):
        plain += markup[at : match.start()]
        chain, types, words = match.groups()
        phrases.append(BoxedPhrase(words, chain, tuple(types[1:].split("/")), len(plain), len(plain) + len(words)))
        plain += words
        at = match.end()
    plain += markup[at:]
    if "[/EN#" in plain:
        raise ConversionError(f"broken markup: {markup!r}")
    return plain, phrases


def parse_boxes(path: Path) -> tuple[tuple[int, int], list[tuple[list[str], list[float]]]]:
    """((width, height), [(chains, [xmin, ymin, xmax, ymax])]) of an Annotations/*.xml; boxless objects left out."""
    try:
        root = ElementTree.parse(path).getroot()
        size = (int(root.findtext("size/width", "")), int(root.findtext("size/height", "")))
        boxes = []
        for entry in root.iter("object"):
            corners = entry.find("bndbox")
            if corners is not None:
                box = [float(corners.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")]
                boxes.append(([name.text or "" for name in entry.findall("name")], box))
    except FileNotFoundError:
        raise
    except (ElementTree.ParseError, TypeError, ValueError) as error:
        raise ConversionError(f"{path}: broken annotation: {error}") from None
    return size, boxes


def read(request: Request) -> RawDataset:
    """One record per image: five captions, their phrases with chain and types, all boxes."""
    raw = request.raw
    root = raw if (raw / "Sentences").is_dir() else raw / "flickr30k_entities"
    for folder in ("Sentences", "Annotations"):
        existing([root / folder], f"the folder {folder} of annotations.zip")
    listed = existing([root / f"{request.split}.txt"], "the list of the split")
    with open_text(listed) as lines:
        names = [line.strip() for line in lines if line.strip()]
    unrelated = _unrelated(root) if request.split == "train" else set()
    provenance = {"converter": "flickr30k_entities", "split": listed.name, "images": len(names)}
    items = (_item(root, name, request, unrelated) for name in names)
    return RawDataset("flickr30k_entities", request.split, LICENCE, provenance, items, len(names))


def _unrelated(root: Path) -> set[tuple[str, int]]:
    """(image, sentence from 0) of captions that do not describe their image; nothing to learn from."""
    path = root / "UNRELATED_CAPTIONS"
    if not path.exists():
        return set()
    with open_text(path) as lines:
        rows = [line.split() for line in lines]
    return {(row[0], int(row[1])) for row in rows if len(row) >= 2 and row[1].isdecimal()}


def _item(root: Path, name: str, request: Request, unrelated: set[tuple[str, int]]) -> RawItem | Drop:
    image_id, drops = f"flickr_{name}", []
    try:
        size, objects = parse_boxes(root / "Annotations" / f"{name}.xml")
        markup = (root / "Sentences" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        return Drop("missing annotation file", image_id, str(error.filename))
    except UnicodeDecodeError as error:
        return Drop("broken annotation file", image_id, str(error))
    captions = []
    for number, line in enumerate(markup):
        if (name, number) in unrelated:
            drops.append(Drop("unrelated caption", image_id, f"sentence {number}"))
        elif line.strip():
            captions.append(_caption(line.strip(), objects))
    record = {
        "image_id": image_id,
        "source": "flickr30k_entities",
        "captions": captions,
        "boxes": [{"box": box} for _, box in objects],
    }
    return RawItem(record, (image(request, f"{name}.jpg"),), size, tuple(drops))


def _caption(markup: str, objects: list[tuple[list[str], list[float]]]) -> dict[str, Any]:
    text, boxed = parse_sentence(markup)
    phrases = [
        {
            "span": [[phrase.start, phrase.end]],
            "boxes": [i for i, (chains, _) in enumerate(objects) if phrase.chain in chains],
            "chain": phrase.chain,
            "types": list(phrase.types),
        }
        for phrase in boxed
        if phrase.text.strip() and phrase.chain != NOT_VISUAL
    ]
    return {"text": text, **({"phrases": phrases} if phrases else {})}
