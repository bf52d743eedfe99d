"""The model card: README.md of an export, with the front matter that the hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from fiber.weights.export_config import ExportConfig

ABSENT = -1.0  # AP where a set has no such object: no result
NO_LICENCE = {"license": "other", "license_name": "see-the-card"}


@dataclass(frozen=True)
class TrainingSet:
    """A set of data as its dataset.json describes it; only the name is always known."""

    name: str
    split: str = ""
    licence: str = ""

    def __str__(self) -> str:
        words = f"{self.name} {self.split}".strip()
        return f"{words} ({self.licence})" if self.licence else words


@dataclass(frozen=True)
class Card:
    """What the model card says: sets of the training data (or what is known of them in words), sets of the
    evaluation, optimizer steps, metrics by name, those of them that count (`headline`, all by default), and notes on
    how the weights came about."""

    data: Sequence[str | TrainingSet] = ()
    steps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    evaluated: Sequence[TrainingSet] = ()
    headline: Sequence[str] = ()


def model_card(name: str, config: ExportConfig, tensors: Mapping[str, Any], card: Card) -> str:
    """README.md of an export. `tensors`: by name, for their number and for what the model can do."""
    image, text = config.model.image, config.model.text
    numbers = sum(tensor.numel() for tensor in tensors.values())
    kind = "image level (stage 1)" if config.stage == "coarse" else "region level (stage 2)"
    lines = ["---", yaml.safe_dump(front_matter(name, config, tensors, card), sort_keys=False).strip(), "---", ""]
    lines += [
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
    lines += [f"- data: {entry}" for entry in dict.fromkeys(map(str, card.data))] or ["- data: not recorded"]
    lines.append(f"- optimizer steps: {'not recorded' if card.steps is None else card.steps}")
    lines += [f"- {note}" for note in card.notes]
    rows = {metric: value for metric, value in card.metrics.items() if value != ABSENT}
    if rows:
        lines += ["", "## Metrics", ""]
        if card.evaluated:
            lines += ["On " + ", ".join(dict.fromkeys(map(str, card.evaluated))) + ".", ""]
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {metric} | {value:.4g} |" for metric, value in rows.items()]
    terms = "Weights carry the terms of the data and of the starting weights they were made from; the list above is "
    terms += "what is known of them. The code that reads them is under the MIT licence."
    lines += ["", "## Licence", "", terms, ""]
    lines += ["## Use", "", "```python", "import fiber", f'model = fiber.load("{name}")', "```", ""]
    if config.auto_map:
        lines += ["Or by transformers, with this project's code installed:", "", "```python"]
        lines += ["from transformers import AutoModel"]
        lines += [f'model = AutoModel.from_pretrained("{name}", trust_remote_code=True)']
        lines += ['model.detect(["photo.jpg"], ["a red circle", "a dog"], threshold=0.3)', "```", ""]
    return "\n".join(lines)


def front_matter(name: str, config: ExportConfig, names: Iterable[str], card: Card) -> dict[str, Any]:
    """What the hub reads of a card: licence, library, pipeline, data sets, and the metrics as a model index."""
    pipeline = pipeline_tag(config, names)
    found: dict[str, Any] = NO_LICENCE | {"library_name": "fiber", "pipeline_tag": pipeline}
    found["tags"] = ["fiber", "vision-language", "image-level" if config.stage == "coarse" else "region-level"]
    sets = [entry.name for entry in card.data if isinstance(entry, TrainingSet)]
    if sets:
        found["datasets"] = list(dict.fromkeys(re.sub(r"[^\w.-]+", "-", entry) for entry in sets))
    wanted = [
        metric
        for metric, value in card.metrics.items()
        if value != ABSENT and (not card.headline or metric.rpartition("/")[2] in card.headline)
    ]
    if wanted:
        on = ", ".join(dict.fromkeys(entry.name for entry in card.evaluated)) or "not recorded"
        results = [
            {
                "task": {"type": pipeline},
                "dataset": {"type": "fiber-shards", "name": metric.rpartition("/")[0] or on},
                "metrics": [{"type": metric.rpartition("/")[2], "value": round(card.metrics[metric], 6)}],
            }
            for metric in wanted
        ]
        found["model-index"] = [{"name": name, "results": results}]
    return found


def pipeline_tag(config: ExportConfig, names: Iterable[str]) -> str:
    """The hub's word for what a model does best, by the heads that it has."""
    if config.stage == "fine":
        return "zero-shot-object-detection"
    if "vqa" in config.classifiers:
        return "visual-question-answering"
    heads = {parts[1] for parts in (name.split(".") for name in names) if parts[0] == "heads" and len(parts) > 1}
    if "contrastive" in heads:
        return "zero-shot-image-classification"
    return "image-to-text" if "mlm" in heads and not config.classifiers else "image-feature-extraction"
