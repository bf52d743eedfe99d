"""The export folder: a trained model in files that need nothing of the run that made it.

model.safetensors    weights, names of ours
config.json          `ExportConfig`: everything needed to rebuild the model
tokenizer files      as transformers reads them
answers.json         answer vocabulary, order = class index (models with a question head)
categories.json      class names a detector was trained on, in order
official_extras.safetensors   tensors of a converted official file that our model has no use for
README.md            model card
modeling_fiber.py    a class for transformers (detectors)
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fiber.config.loading import read_tree, to_dict
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import DetectorConfig, Stage2Config
from fiber.data.shards import dataset_info
from fiber.data.text import load_tokenizer
from fiber.errors import ConfigError, ShardError, WeightsError, without_secrets
from fiber.weights import transformers_class
from fiber.weights.card import Card, TrainingSet, model_card
from fiber.weights.export_config import CONFIG, ExportConfig, read_config
from fiber.weights.hub import export_folder
from fiber.weights.tensors import read_tensors, write_tensors

RunConfig = Stage1Config | Stage2Config

WEIGHTS, EXTRAS = "model.safetensors", "official_extras.safetensors"
ANSWERS, CATEGORIES = "answers.json", "categories.json"


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
    config = replace(config, model=model)
    if any(name.startswith("head.") for name in tensors):  # a detector, not only the towers of one
        config = replace(config, architectures=[transformers_class.CLASS], auto_map=transformers_class.AUTO_MAP)
        (partial / transformers_class.FILE).write_text(transformers_class.SOURCE)
    _write_json(partial / CONFIG, to_dict(config))
    write_tensors(partial / WEIGHTS, _storable(tensors))
    if extras:
        write_tensors(partial / EXTRAS, _storable(extras))
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


def write_run_export(
    config: RunConfig,
    export: Export,
    figures: Mapping[str, float],
    headline: Sequence[str] = (),
    steps: int | None = None,
    folder: str | Path | None = None,
) -> Path:
    """Write what a run of `config` exports to `folder` (default: RUN/export); the card names its training data, the
    `steps` that were made (default: all of `config`) and `figures`, of which those of `headline` count. A threshold
    of detection that was calibrated goes into its configuration."""
    card = Card(
        data=[describe_set(source.path) for source in config.data.train],
        steps=config.train.steps if steps is None else steps,
        metrics=figures,
        evaluated=[describe_set(source.path) for source in config.eval.data],
        headline=headline,
    )
    calibrated = [value for name, value in figures.items() if name.rpartition("/")[2] == "detect_threshold"]
    if calibrated:  # by several sets: that of the first
        export = replace(export, config=replace(export.config, thresholds={"detect": calibrated[0]}))
    return export.write(folder or Path(config.output) / "export", card)


def describe_set(path: str) -> TrainingSet:
    """What a card says of a set of shards: as its dataset.json has it, else by the folder's name; never a path."""
    try:
        info = dataset_info(path)
    except ShardError:
        info = {}
    name = info.get("name") or Path(without_secrets(path)).name
    return TrainingSet(name, info.get("split", ""), str(info.get("licence", "")))


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


def inherited_sizes(path: str | Path, output: str | None = None) -> dict[str, Any]:
    """The sections `model` and, at region level, `detector` that a run has in common with the export that it starts
    from, as plain data: `inherit` of `load_config`. Where that export has gone, a run that has a checkpoint in
    `output` goes by its own configuration. Raises ConfigError."""
    try:
        config = read_config(export_folder(path))
    except WeightsError as error:
        own = None if output is None else Path(output)
        if own is not None and (own / "checkpoints" / "latest").exists() and (own / "config.yaml").is_file():
            tree = read_tree(own / "config.yaml")
            return {name: tree[name] for name in ("model", "detector") if name in tree}
        raise ConfigError(f"init_from: {error}") from None
    sections: dict[str, Any] = {"model": to_dict(config.model)}
    if config.stage == "fine":
        names = {spec.name for spec in fields(DetectorConfig)}
        sections["detector"] = {name: value for name, value in config.detector.items() if name in names}
    return sections


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
