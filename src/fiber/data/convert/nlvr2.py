"""NLVR2: sentences about two images; the files are JSON lines whatever their name says.

Pairs keep both images and all their sentences. test2 has labels only in its public form.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert.items import (
    ConversionError,
    Drop,
    RawDataset,
    RawImage,
    RawItem,
    Request,
    each,
    existing,
    image_in,
)
from fiber.data.convert.json_stream import Grouped

SPLITS = ("train", "dev", "test1", "test2")
VARIANTS = ("all", "balanced", "unbalanced")

LICENCE = "annotations CC-BY-4.0 (NLVR2); images are not licensed: research use, from the authors on request"


def read(request: Request) -> RawDataset:
    """One record a pair of images with its statements."""
    name = f"{request.split}.json"
    if request.variant != "all":
        if request.split == "train":
            raise ConversionError("NLVR2's train has no balanced and unbalanced parts, only dev, test1 and test2")
        name = f"{request.variant}/{request.variant}_{name}"
    raw = request.raw
    places = [raw / "data" / name, raw / "nlvr2" / "data" / name, raw / name, raw / Path(name).name]
    path = existing([request.annotations] if request.annotations else places, name)
    statements = Grouped(path, None, lambda entry: entry["identifier"].rpartition("-")[0], lines=True)
    provenance = {"converter": "nlvr2", "variant": request.variant, "file": path.name, "bytes": path.stat().st_size}
    return RawDataset("nlvr2", request.split, LICENCE, provenance, _items(statements, request), len(statements))


def _items(statements: Grouped[str], request: Request) -> Iterator[RawItem | Drop]:
    def item(pair: str) -> Iterator[RawItem]:
        entries = statements[pair]
        record = {
            "image_id": f"nlvr2_{pair}",
            "source": "nlvr2",
            "statements": [_statement(entry) for entry in entries],
        }
        yield RawItem(record, tuple(_image(request, pair, side, entries[0]) for side in (0, 1)))

    yield from statements.malformed("nlvr2")
    yield from each(statements, item, "nlvr2")


def _statement(entry: dict[str, Any]) -> dict[str, Any]:
    statement = {"text": entry["sentence"], "id": entry["identifier"]}
    if "label" in entry:
        statement["label"] = str(entry["label"]).lower() == "true"
    return statement


def _image(request: Request, pair: str, side: int, entry: dict[str, Any]) -> RawImage:
    """Left (0) or right (1). Train lies in images/train/<directory>/, the others in <split>/."""
    split = pair.partition("-")[0]
    roots = [request.images] if request.images else [request.raw / "images", request.raw]
    folder = f"train/{entry['directory']}" if "directory" in entry else split
    folders = [place for root in roots for place in (root / folder, root / split, root)]
    return image_in(folders, f"{pair}-img{side}.png")
