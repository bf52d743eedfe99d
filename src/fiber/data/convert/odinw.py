"""ODinW's 35 sets, in COCO's format. (Your own boxes: `boxes`.)

RAW is the folder of one set. Annotations are RAW/SPLIT/annotations_without_background.json (or
_annotations.coco.json, annotations.json, ...) with the images next to them, or RAW/annotations/SPLIT.json, or what
--annotations and --images say. Split train_5_3 is the few-shot file of 5 shots, seed 3. With --config, one of ODinW's
YAML files, RAW is the folder above `odinw/`, and the file says where things are and how categories are called: by
their names, or (CAPTION_PROMPT) by names in a context, of which the name alone stands for the class.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fiber.data.convert import coco_format
from fiber.data.convert.boxes_coco import own_classes
from fiber.data.convert.file_names import FileNames
from fiber.data.convert.image_folder import ImageFolder
from fiber.data.convert.items import ConversionError, RawDataset, Request, existing
from fiber.data.convert.json_stream import count_array
from fiber.data.records import clean_text

FEW_SHOT = tuple(f"{part}_{shots}_{seed}" for part in ("train", "val") for shots in (1, 3, 5, 10)
                 for seed in (3, 30, 300))  # fmt: skip
SPLITS = ("train", "val", "test", *FEW_SHOT)
VARIANTS = ("prompts", "names")
OPTIONS = ("raw", "annotations", "images", "config")

LICENCE = "as stated by the publisher of the set (Roboflow's carry a README with it); check before use"
FILES = ("annotations_without_background.json", "_annotations.coco.json", "annotations.json", "instances.json")
FOLDERS = {"train": ("train",), "val": ("valid", "val", "minival"), "test": ("test",)}


def read(request: Request) -> RawDataset:
    """One record per image. Category ids stay as they are, only Roboflow's empty super-category 0 goes."""
    annotations, images, name = _places(request)
    classes = own_classes(annotations)
    section = {} if request.config is None else load_config(request.config)
    prompts = request.variant == "prompts" and bool(section.get("CAPTION_PROMPT"))
    classes = named(classes, section, prompts)
    listed, folder = FileNames(coco_format.file_names(annotations)), ImageFolder(images)
    items = coco_format.items(
        annotations,
        name,
        {entry["id"] for entry in classes},
        lambda image: listed.image_id(name, coco_format.file_name(image)),
        lambda image: listed.find(folder, coco_format.file_name(image)),
    )
    provenance = {
        "converter": "odinw",
        "set": name,
        "class_names": "prompts" if prompts else "names",
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
    few_shot = [f"fewshot_{name}_shot{few[0]}_seed{few[1]}.json" for name in (part, f"mini{part}")] if few else []
    files = few_shot or FILES
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
    entries, small = section["REGISTER"], "minival" in str(section.get("TEST"))
    name = f"mini{split}" if split.startswith("val") and small and f"mini{split}" in entries else split
    if name not in entries:
        raise ConversionError(f"the configuration registers no split {split!r}; it has {', '.join(entries)}")
    return entries[name]


def named(classes: list[dict[str, Any]], section: dict[str, Any], prompts: bool) -> list[dict[str, Any]]:
    """The categories of an annotation file by the names that a configuration gives them, if it does.

    prompts: in their context, CAPTION_PROMPT, which the order of the list assigns; the name is in [brackets]
    (`data.prompts.in_context`): {"prefix": "", "name": "hand", "suffix": " of a person"} is "[hand] of a person".
    """
    # Some lists are JSON, some Python's repr: YAML reads both.
    given = yaml.safe_load(section.get("OVERRIDE_CATEGORY") or "[]")
    names = {entry["id"]: entry["name"] for entry in given or classes}
    if prompts:
        contexts = yaml.safe_load(section["CAPTION_PROMPT"])
        if len(contexts) != len(names):
            raise ConversionError(
                f"CAPTION_PROMPT has {len(contexts)} entries for {len(names)} categories; use --variant names"
            )
        names = dict(zip(names, map(_in_context, contexts), strict=True))
    return [{**entry, "name": names.get(entry["id"], entry["name"])} for entry in classes]


def _in_context(entry: dict[str, str]) -> str:
    before, name, after = (str(entry.get(key, "")) for key in ("prefix", "name", "suffix"))
    if not clean_text(name) or set(before + name + after) & set("[]"):
        raise ConversionError(f"CAPTION_PROMPT {entry}: needs a name, and no square brackets; use --variant names")
    return f"{before}[{name}]{after}" if before or after else name


def _slug(name: str) -> str:
    return re.sub("[^A-Za-z0-9_-]+", "_", name)
