"""NoCaps: novel object captioning on OpenImages images; val has ten captions per image, test none.

A record keeps the image's `domain` (in-domain, near-domain, out-domain), by which scores are reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert.items import Drop, RawDataset, RawItem, Request, each, existing, image_in
from fiber.data.convert.json_stream import Grouped, count_array, has_array, iter_array

SPLITS = ("val", "test")

LICENCE = "annotations CC-BY-2.0 (nocaps); images CC-BY-2.0 (Open Images)"
FILES = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}


def read(request: Request) -> RawDataset:
    """One record per image. Its image id is nocaps_<id>, the id submissions ask for."""
    name = FILES[request.split]
    places = [request.raw / name, request.raw / "annotations" / name]
    path = existing([request.annotations] if request.annotations else places, name)
    provenance = {"converter": "nocaps", "file": path.name, "bytes": path.stat().st_size}
    total = count_array(path, "images")
    return RawDataset("nocaps", request.split, LICENCE, provenance, _items(path, request), total)


def _items(path: Path, request: Request) -> Iterator[RawItem | Drop]:
    captions = None
    if has_array(path, "annotations"):
        captions = Grouped(path, "annotations", lambda entry: entry["image_id"])
    roots = [request.images] if request.images else [request.raw / "images", request.raw]
    folders = [place for root in roots for place in (root, root / request.split)]

    def item(image: dict[str, Any]) -> Iterator[RawItem]:
        record: dict[str, Any] = {"image_id": f"nocaps_{image['id']}", "source": "nocaps"}
        if "domain" in image:
            record["domain"] = image["domain"]
        if captions is not None:
            record["captions"] = [{"text": entry.get("caption")} for entry in captions[image["id"]]]
        yield RawItem(record, (image_in(folders, image["file_name"]),))

    yield from captions.malformed("nocaps") if captions is not None else ()
    yield from each(iter_array(path, "images"), item, "nocaps")
