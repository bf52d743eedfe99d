"""ODinW's 35 sets, and any folder with annotations in COCO's format, your own included.

RAW is the folder of one set. Annotations are RAW/SPLIT/annotations_without_background.json (or
_annotations.coco.json, annotations.json, ...) with the images next to them, or RAW/annotations/SPLIT.json, or what
--annotations and --images say. Split train_5_3 is the few-shot file of 5 shots, seed 3. With --config, one of ODinW's
YAML files, RAW is the folder above `odinw/`, and the file says where things are and how categories are called.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fiber.data.convert import coco_format
from fiber.data.convert.image_folder import ImageFolder
from fiber.data.convert.items import ConversionError, RawDataset, Request, existing
from fiber.data.convert.json_stream import count_array, iter_array
from fiber.data.records import clean_text

FEW_SHOT = tuple(f"{part}_{shots}_{seed}" for part in ("train", "val") for shots in (1, 3, 5, 10)
                 for seed in (3, 30, 300))  # fmt: skip
SPLITS = ("train", "val", "test", *FEW_SHOT)
VARIANTS = ("names", "prompts")
OPTIONS = ("raw", "annotations", "images", "config")

LICENCE = "as stated by the publisher of the set (Roboflow's carry a README with it); check before use"
FILES = ("annotations_without_background.json", "_annotations.coco.json", "annotations.json", "instances.json")
FOLDERS = {"train": ("train",), "val": ("valid", "val", "minival"), "test": ("test",)}


def read(request: Request) -> RawDataset:
    """One record per image. Category ids stay as they are, only Roboflow's empty super-category 0 goes."""
    annotations, images, name = _places(request)
    classes = _classes(annotations)
    if request.config is not None:
        names = {e["id"]: e["name"] for e in override(load_config(request.config), request.variant == "prompts")}
        classes = [{**entry, "name": names.get(entry["id"], entry["name"])} for entry in classes]
    elif request.variant == "prompts":
        raise ConversionError("--variant prompts takes its words from --config")
    listed, folder = coco_format.FileNames(annotations), ImageFolder(images)
    items = coco_format.items(
        annotations,
        name,
        {entry["id"] for entry in classes},
        lambda image: listed.image_id(name, image),
        lambda image: listed.find(folder, image),
    )
    provenance = {
        "converter": "odinw",
        "set": name,
        "variant": request.variant,
        "file": annotations.name,
        "bytes": annotations.stat().st_size,
    }
    total = count_array(annotations, "images")
    return RawDataset(name, request.split, LICENCE, provenance, items, total, categories=classes)


def _places(request: Request) -> tuple[Path, list[Path], str]:
    """(annotation file, image folders in the order of looking, name of the set)."""
    if request.config is not None:
        entry = registered(load_config(request.config), request.split)
        path = existing([request.raw / entry["ann_file"]], "the annotations")
        return path, _with_images(request.raw / entry["img_dir"]), _slug(request.config.stem)
    name = _slug(request.raw.resolve().name)
    if request.annotations is not None:
        path = existing([request.annotations, request.raw / request.annotations], "the annotations")
        return path, _with_images(*([request.images] if request.images else [path.parent, request.raw])), name
    part, *few = request.split.split("_")
    folders = FOLDERS[part]
    files = (f"fewshot_{part}_shot{few[0]}_seed{few[1]}.json",) if few else FILES
    next_to = [request.raw / folder / file for folder in folders for file in files]
    apart = [request.raw / "annotations" / f"{k}{folder}.json" for k in ("instances_", "") for folder in folders]
    path = existing([*next_to, *apart], f"annotations of {request.split}")
    if request.images is not None:
        return path, _with_images(request.images), name
    if path.parent.name != "annotations":
        return path, _with_images(path.parent), name
    places = [request.raw / place / folder for folder in folders for place in ("", "images")]
    return path, _with_images(existing([*places, request.raw / "images", request.raw], "the images")), name


def _with_images(*folders: Path) -> list[Path]:
    return [place for folder in folders for place in (folder, folder / "images")]


def load_config(path: Path) -> dict[str, Any]:
    """DATASETS of an ODinW YAML file. Raises ConversionError."""
    try:
        section = yaml.safe_load(path.read_text())["DATASETS"]
        section["REGISTER"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConversionError(f"{path}: not an ODinW configuration: {error!r}") from None
    return section


def registered(section: dict[str, Any], split: str) -> dict[str, str]:
    """{"ann_file", "img_dir"} of a split. "val" is what the published numbers are on: minival where it is tested."""
    entries = section["REGISTER"]
    name = "minival" if split == "val" and "minival" in str(section.get("TEST")) else split
    if name not in entries:
        raise ConversionError(f"the configuration registers no split {split!r}; it has {', '.join(entries)}")
    return entries[name]


def override(section: dict[str, Any], prompts: bool) -> list[dict[str, Any]]:
    """[{"id", "name"}] in place of the annotation file's names; [] if the configuration has none.

    prompts: names dressed by CAPTION_PROMPT ("hand" -> "hand of a person"), which the order of the list assigns.
    """
    # Some lists are JSON, some Python's repr: YAML reads both.
    classes = yaml.safe_load(section.get("OVERRIDE_CATEGORY") or "[]")
    names = [entry["name"] for entry in classes]
    if prompts:
        dressed = yaml.safe_load(section.get("CAPTION_PROMPT") or "[]")
        if len(dressed) != len(classes) or not classes:
            raise ConversionError("the configuration has no CAPTION_PROMPT for its categories; use --variant names")
        names = [clean_text(f"{entry['prefix']}{entry['name']}{entry['suffix']}") for entry in dressed]
    return [{"id": entry["id"], "name": name} for entry, name in zip(classes, names, strict=True)]


def _classes(path: Path) -> list[dict[str, Any]]:
    classes = coco_format.categories(path)
    parents = {entry.get("supercategory") for entry in iter_array(path, "categories")}
    zero = next((entry for entry in classes if entry["id"] == 0), None)
    if zero is not None and zero["name"] in parents:  # Roboflow writes the name of the whole project as category 0
        used = any(entry["category_id"] == 0 for entry in iter_array(path, "annotations"))
        if not used:
            return [entry for entry in classes if entry["id"] != 0]
    return classes


def _slug(name: str) -> str:
    return re.sub("[^A-Za-z0-9_-]+", "_", name)
