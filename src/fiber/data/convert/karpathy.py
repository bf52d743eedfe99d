"""Karpathy's split files (dataset_coco.json, dataset_flickr30k.json): one entry an image with its sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert.items import Drop, RawImage, RawItem, each
from fiber.data.convert.json_stream import iter_array


def items(
    path: Path, split: str, source: str, image_id: Callable[[dict[str, Any]], str], image: Callable[[dict], RawImage]
) -> Iterator[RawItem | Drop]:
    """Images of one split with all their captions (``raw``; white space is put in order when packed)."""

    def item(entry: dict[str, Any]) -> Iterator[RawItem]:
        if entry["split"] == split:
            captions = [{"text": sentence["raw"]} for sentence in entry["sentences"]]
            record = {"image_id": image_id(entry), "source": source, "captions": captions}
            yield RawItem(record, (image(entry),))

    return each(iter_array(path, "images"), item, source)


def count(path: Path, split: str) -> int:
    """Images of the split."""
    return sum(isinstance(entry, dict) and entry.get("split") == split for entry in iter_array(path, "images"))
