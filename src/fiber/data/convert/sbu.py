"""SBU Captioned Photos: images fetched with img2dataset or in ViLT's layout.

The list is sbu-captions-all.json (parallel lists) or the original pair of SBU_captioned_photo_dataset_*.txt. Flickr
answers for deleted photos with one and the same image: those are recognised by their equal bytes and left out.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

from fiber.data.convert import web_pairs
from fiber.data.convert.items import ConversionError, RawDataset, Request
from fiber.data.convert.json_stream import iter_array, open_text

SPLITS = ("train",)

LICENCE = "captions: terms of the SBU data set (research); images: terms of Flickr and of each photographer"


def read(request: Request) -> RawDataset:
    """One record an image with its caption."""
    raw = request.raw
    images = request.images or (raw / "images_train" if (raw / "images_train").is_dir() else raw)
    places = [raw / "sbu-captions-all.json", raw / "SBU_captioned_photo_dataset_captions.txt"]
    listed = request.annotations or next((path for path in places if path.exists()), None)
    rows = captions(listed) if listed else None
    layout, items = web_pairs.find(images, "sbu", [raw / "annot.json", images / "annot.json"], rows)
    total = sum(1 for _ in captions(listed)) if listed else None
    provenance = {"converter": "sbu", "layout": layout, "list": listed.name if listed else None, "rows": total}
    return RawDataset("sbu", request.split, LICENCE, provenance, items, total, placeholders=True)


def captions(path: Path) -> Iterator[str]:
    """Captions of either list, in order; HTML entities are resolved."""
    if path.suffix == ".json":
        urls = sum(1 for _ in iter_array(path, "image_urls"))
        texts = 0
        for text in iter_array(path, "captions"):
            texts += 1
            yield html.unescape(text)
        if texts != urls:
            raise ConversionError(f"{path}: {urls} urls but {texts} captions; the file is damaged")
    else:
        with open_text(path) as lines:
            yield from (html.unescape(line.rstrip("\r\n")) for line in lines)
