"""The export folder: a trained model in files that need nothing of the run that made it.

model.safetensors    weights, names of ours
config.json          `ExportConfig`: everything needed to rebuild the model
tokenizer files      as transformers reads them
answers.json         answer vocabulary, order = class index (models with a question head)
categories.json      class names a detector was trained on, in order
official_extras.safetensors   tensors of a converted official file that our model has no use for
README.md            model card
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic.dataclasses import dataclass as pydantic_dataclass
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fiber.config.base import STRICT, ModelConfig
from fiber.config.loading import load_config, to_dict
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import DetectorConfig, Stage2Config
from fiber.data.text import load_tokenizer
from fiber.errors import ConfigError, WeightsError, without_secrets
from fiber.weights.tensors import read_tensors

RunConfig = Stage1Config | Stage2Config

WEIGHTS, CONFIG, EXTRAS = "model.safetensors", "config.json", "official_extras.safetensors"
ANSWERS, CATEGORIES = "answers.json", "categories.json"


@pydantic_dataclass(frozen=True, config=STRICT)
class ExportConfig:
    """What `config.json` holds. `image_size` is the side of the square (coarse) or the short side of a test image
    (fine, whose long side is at most `max_image_size`); `max_text` counts tokens; `classifiers` maps per task to its
    number of classes (coarse); `detector` holds the keyword arguments of FiberDetector (fine). `trained`: the tasks
    that the weights were trained for (coarse; [] where that is not known)."""

    stage: Literal["coarse", "fine"]
    model: ModelConfig
    vocab_size: int
    pad_id: int
    image_size: int
    max_text: int
    max_image_size: int | None = None
    classifiers: dict[str, int] = field(default_factory=dict)
    detector: dict[str, Any] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    format: Literal["fiber"] = "fiber"
    version: Literal[1] = 1


def coarse_config(
    config: Stage1Config, tokenizer: PreTrainedTokenizerBase, classifiers: Mapping[str, int] | None = None
) -> ExportConfig:
    """What an image-level run exports: `classifiers` maps the tasks whose heads its model has to their classes."""
    return ExportConfig(
        stage="coarse",
        model=config.model,
        vocab_size=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        image_size=config.image_size,
        max_text=config.max_text,
        classifiers=dict(classifiers or {}),
    )


@dataclass(frozen=True)
class Card:
    """What the model card says: names of the training data (with their licences where known), optimizer steps,
    metrics by name, and notes on how the weights came about."""

    data: Sequence[str] = ()
    steps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Export:
    """An export folder in memory; tensors lie on the CPU."""

    config: ExportConfig
    tensors: dict[str, Tensor]
    tokenizer: PreTrainedTokenizerFast
    answers: list[str]
    categories: list[str]
    extras: dict[str, Tensor]

    @property
    def towers_only(self) -> bool:
        """Whether this is a region-level model without pyramid and head: a start for training, no detector yet."""
        return self.config.stage == "fine" and not any(name.startswith("head.") for name in self.tensors)

    def write(self, folder: str | Path, card: Card) -> Path:
        """`write_export` of everything it holds."""
        return write_export(folder, card=card, **vars(self))


def write_export(
    folder: str | Path,
    tensors: Mapping[str, Tensor],
    config: ExportConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    card: Card | None = None,
    answers: Sequence[str] = (),
    categories: Sequence[str] = (),
    extras: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write an export folder under another name, then rename it over an older export. `tensors` is the state dict of
    the model (not of the task around it), on any device, in the dtype to be stored.

    Raises WeightsError if the folder holds something that is no export, if tokenizer, answers and configuration
    disagree, or if a weight is not finite.
    """
    folder = Path(folder)
    _check_consistent(tensors, config, tokenizer, answers)
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise WeightsError(f"{folder} exists and is not an export; choose another folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # No local paths in a file that travels: the towers' starting points are part of the weights now.
    model = replace(
        config.model,
        image=replace(config.model.image, pretrained=None),
        text=replace(config.model.text, pretrained=None),
    )
    _write_json(partial / CONFIG, to_dict(replace(config, model=model)))
    save_file(_storable(tensors), partial / WEIGHTS, metadata={"format": "pt"})
    if extras:
        save_file(_storable(extras), partial / EXTRAS, metadata={"format": "pt"})
    for name, entries in ((ANSWERS, answers), (CATEGORIES, categories)):
        if entries:
            _write_json(partial / name, list(entries))
    tokenizer.save_pretrained(str(partial))
    path = folder.resolve()
    name = path.parent.name if path.name == "export" else path.name  # of a run directory: the run's name
    (partial / "README.md").write_text(model_card(name, config, tensors, card or Card()))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def write_run_export(config: RunConfig, export: Export, figures: Mapping[str, float]) -> Path:
    """Write what a run of `config` exports to RUN/export; the card names its training data and `figures`."""
    card = Card(
        [Path(without_secrets(source.path)).name for source in config.data.train], config.train.steps, figures
    )
    return export.write(Path(config.output) / "export", card)


def read_export(path: str | Path) -> Export:
    """Read an export: a folder, a run directory (its `export/`), or a hub id, which is downloaded once.

    Raises WeightsError naming the file that is missing or wrong.
    """
    folder = export_folder(path)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise WeightsError(f"{folder} is not an export of this project: it has no {name}")
    config = read_config(folder)
    try:
        tokenizer = load_tokenizer(folder)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    answers, categories = _list_of_export(folder, ANSWERS), _list_of_export(folder, CATEGORIES)
    extras = read_tensors(folder / EXTRAS) if (folder / EXTRAS).is_file() else {}
    return Export(config, read_tensors(folder / WEIGHTS), tokenizer, answers, categories, extras)


def answers_of_export(path: str | Path) -> list[str]:
    """The answer vocabulary of an export or run directory, [] where it has none (or is not there)."""
    return _list_of_export(path, ANSWERS)


def categories_of_export(path: str | Path) -> list[str]:
    """The class names of an export or run directory, [] where it has none (or is not there)."""
    return _list_of_export(path, CATEGORIES)


def _list_of_export(path: str | Path, name: str) -> list[str]:
    try:
        file = export_folder(path) / name
    except WeightsError:
        return []
    try:
        entries = json.loads(file.read_text()) if file.is_file() else []
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise WeightsError(f"{file} is damaged: it should hold a list of words")
    return entries


def read_config(folder: Path) -> ExportConfig:
    """`config.json` of an export folder, every key checked. Raises WeightsError."""
    try:
        return load_config(ExportConfig, folder / CONFIG)  # JSON is YAML: the strict reader of configurations serves
    except ConfigError as error:
        raise WeightsError(f"{folder / CONFIG} is no configuration of an export: {error}") from None


def inherited_sizes(path: str | Path) -> dict[str, Any]:
    """The sections `model` and, at region level, `detector` that a run has in common with the export that it starts
    from, as plain data: `inherit` of `load_config`. Raises ConfigError."""
    try:
        config = read_config(export_folder(path))
    except WeightsError as error:
        raise ConfigError(f"init_from: {error}") from None
    sections: dict[str, Any] = {"model": to_dict(config.model)}
    if config.stage == "fine":
        names = {spec.name for spec in fields(DetectorConfig)}
        sections["detector"] = {name: value for name, value in config.detector.items() if name in names}
    return sections


def export_folder(path: str | Path) -> Path:
    """The local folder of an export given as a folder, a run directory or a hub id."""
    folder = Path(path)
    if (folder / "export" / CONFIG).is_file():
        return folder / "export"
    if folder.is_dir():
        return folder
    text = str(path)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise WeightsError(f"no folder {text}, and it is not a hub id (owner/name) either")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.md"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(f"no folder {text}, and the hub has no such model: {str(error).splitlines()[0]}") from None


def model_card(name: str, config: ExportConfig, tensors: Mapping[str, Tensor], card: Card) -> str:
    """README.md of an export."""
    image, text = config.model.image, config.model.text
    numbers = sum(tensor.numel() for tensor in tensors.values())
    kind = "image level (stage 1)" if config.stage == "coarse" else "region level (stage 2)"
    lines = [
        f"# {name}",
        "",
        f"A FIBER model (fusion in the backbone) at {kind}, {numbers / 1e6:.1f} M numbers.",
        "",
        f"- image tower: Swin, {image.embed_dim} channels, depths {list(image.depths)}, window {image.window}, "
        f"image size {config.image_size}",
        f"- text tower: RoBERTa, {text.width} wide, {text.layers} layers, vocabulary {config.vocab_size}, "
        f"{config.max_text} tokens; the last {config.model.num_fused} layer pairs are fused",
    ]
    lines += [f"- {task} head: {classes} classes" for task, classes in config.classifiers.items()]
    lines += ["", "## Training", ""]
    lines += [f"- data: {entry}" for entry in card.data] or ["- data: not recorded"]
    lines.append(f"- optimizer steps: {'not recorded' if card.steps is None else card.steps}")
    lines += [f"- {note}" for note in card.notes]
    if card.metrics:
        lines += ["", "## Metrics", "", "| metric | value |", "|---|---|"]
        lines += [f"| {metric} | {value:.4g} |" for metric, value in card.metrics.items()]
    terms = "Weights carry the terms of the data and of the starting weights they were made from; the list above is "
    terms += "what is known of them. The code that reads them is under the MIT licence."
    lines += ["", "## Licence", "", terms, ""]
    lines += ["## Use", "", "```python", "import fiber", f'model = fiber.load("{name}")', "```", ""]
    return "\n".join(lines)


def _check_consistent(
    tensors: Mapping[str, Tensor], config: ExportConfig, tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]
) -> None:
    if len(tokenizer) != config.vocab_size:
        raise WeightsError(
            f"the tokenizer has {len(tokenizer)} tokens, the model a vocabulary of {config.vocab_size}: "
            "it is not the tokenizer of these weights"
        )
    if answers and len(answers) not in config.classifiers.values():
        classes = ", ".join(f"{name} {n}" for name, n in config.classifiers.items()) or "none"
        raise WeightsError(f"{len(answers)} answers, but no head of so many classes (heads: {classes})")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsError(f"{name} holds numbers that are not finite; these weights are broken")


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU copies that share no memory, as the file format wants them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _write_json(path: Path, value: dict[str, Any] | list[str]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
