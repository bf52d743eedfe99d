"""A folder of class folders, the usual form of a set for image classification: DIR/[SPLIT/]CLASS/IMAGE.

The name of a class is its folder's, with blanks for underscores; it becomes the image's caption, and the list of all
classes the set's categories. So the same shards serve classification, retrieval and captioning.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.convert.image_folder import is_image
from fiber.data.convert.items import ConversionError, RawDataset, RawImage, RawItem, Request
from fiber.data.convert.splits import subfolders

SPLITS = ("all", "train", "val", "test")
OPTIONS = ("raw",)
LICENCE = "that of the images in the folder"


def read(request: Request) -> RawDataset:
    """One record per image. The split is a folder above the classes; without it the classes are at the top. Raises
    ConversionError where there are fewer than two classes."""
    root = request.raw / request.split if (request.raw / request.split).is_dir() else request.raw
    folders = [path for path in subfolders(root) if not path.name.startswith(".")]
    images = {folder: _images(folder) for folder in folders}
    folders = [folder for folder in folders if images[folder]]
    if len(folders) < 2:
        raise ConversionError(
            f"{root}: {len(folders)} folders with images; give a folder with one folder of images per class"
        )
    names = [folder.name.replace("_", " ") for folder in folders]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    provenance = {"converter": "class_folders", "folder": root.name, "classes": len(names)}
    items = _items(root, images, dict(zip(folders, names, strict=True)))
    total = sum(len(images[folder]) for folder in folders)
    return RawDataset(request.raw.resolve().name, request.split, LICENCE, provenance, items, total, categories)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if is_image(path.name) and path.is_file())


def _items(root: Path, images: dict[Path, list[Path]], names: dict[Path, str]) -> Iterator[RawItem]:
    for folder, name in names.items():
        for path in images[folder]:
            image_id = path.relative_to(root).as_posix()
            record: dict[str, Any] = {"image_id": image_id, "source": root.name, "captions": [{"text": name}]}
            yield RawItem(record, (RawImage((str(path),)),))
