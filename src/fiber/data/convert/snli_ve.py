"""SNLI-VE: does a Flickr30k image entail, contradict or leave open a sentence? JSON lines.

The hypothesis (sentence2) is the only text: the image is the premise, its caption (sentence1) is not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fiber.data.convert.flickr30k import image
from fiber.data.convert.items import Drop, RawDataset, RawItem, Request, each, existing
from fiber.data.convert.json_stream import Grouped
from fiber.data.records import LABELS

SPLITS = ("train", "dev", "test")

LICENCE = "SNLI CC-BY-SA-4.0; images: Flickr30k, terms of Flickr, non-commercial research and education only"


def read(request: Request) -> RawDataset:
    """One record an image with its hypotheses."""
    name = f"snli_ve_{request.split}.jsonl"
    places = [request.raw / name, request.raw / "data" / name]
    path = existing([request.annotations] if request.annotations else places, name)
    by_image = Grouped(path, None, _image_of, lines=True)
    provenance = {"converter": "snli_ve", "file": path.name, "bytes": path.stat().st_size}
    return RawDataset("snli_ve", request.split, LICENCE, provenance, _items(by_image, request), len(by_image))


def _image_of(entry: dict[str, Any]) -> str:
    return str(entry["Flickr30K_ID"]).removesuffix(".jpg")


def _items(by_image: Grouped, request: Request) -> Iterator[RawItem | Drop]:
    def items(name: str) -> Iterator[RawItem | Drop]:
        image_id = f"flickr_{name}"
        hypotheses, drops = [], []
        for entry in by_image[name]:
            if entry["gold_label"] not in LABELS:  # "-": the annotators did not agree
                drops.append(Drop("no gold label", image_id, entry["pairID"]))
                continue
            hypotheses.append({"text": entry["sentence2"], "label": entry["gold_label"], "id": entry["pairID"]})
        if not hypotheses:
            yield from drops
            yield Drop("no hypotheses left", image_id)
            return
        record = {"image_id": image_id, "source": "snli_ve", "hypotheses": hypotheses}
        yield RawItem(record, (image(request, f"{name}.jpg"),), drops=tuple(drops))

    yield from by_image.malformed("snli_ve")
    yield from each(by_image, items, "snli_ve")
