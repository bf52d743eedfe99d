"""Flickr30k captions in Karpathy's split (29,000 / 1,014 / 1,000), which is not the split of Flickr30k Entities."""

from __future__ import annotations

from pathlib import Path

from fiber.data.convert import karpathy
from fiber.data.convert.items import RawDataset, RawImage, Request, existing, image_in

SPLITS = ("train", "val", "test")

LICENCE = "images: terms of Flickr, for non-commercial research and education only"
FOLDERS = ("flickr30k-images", "flickr30k_images", "images")


def read(request: Request) -> RawDataset:
    """One record an image with its five captions."""
    places = [request.raw / "karpathy" / "dataset_flickr30k.json", request.raw / "dataset_flickr30k.json"]
    path = existing([request.annotations] if request.annotations else places, "Karpathy's dataset_flickr30k.json")
    items = karpathy.items(
        path,
        request.split,
        "flickr30k",
        lambda entry: f"flickr_{Path(entry['filename']).stem}",
        lambda entry: image(request, entry["filename"]),
    )
    provenance = {"converter": "flickr30k", "file": path.name, "bytes": path.stat().st_size}
    return RawDataset("flickr30k", request.split, LICENCE, provenance, items, karpathy.count(path, request.split))


def image(request: Request, file_name: str) -> RawImage:
    """A Flickr30k image in any of the layouts in use (GLIP's has a folder a split)."""
    if request.images is not None:
        return image_in([request.images], file_name)
    roots = [root / folder for root in (request.raw, request.raw / "flickr30k") for folder in FOLDERS]
    return image_in([*roots, *(root / split for root in roots for split in SPLITS)], file_name)
