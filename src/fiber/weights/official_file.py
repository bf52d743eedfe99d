"""Reading the release's checkpoint files: safely, and with a configuration derived from the shapes inside.

Stage 1 is a Lightning `.ckpt` (a dict with `state_dict` and `hyper_parameters`), stage 2 a detection `.pth` (a dict
with `model`, sometimes `model_ema`, and trainer state). Whatever shapes cannot tell is taken from the
hyper-parameters, from the caller or from the published recipe, and listed with its origin.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fiber.config.base import ImageTowerConfig, ModelConfig, TextTowerConfig
from fiber.config.stage2 import DetectorConfig
from fiber.errors import WeightsError
from fiber.weights.export import Export
from fiber.weights.export_config import ExportConfig
from fiber.weights.official import coarse_names, is_queue, to_official, to_ours
from fiber.weights.official_fine import fine_names, from_official_fine, to_official_fine
from fiber.weights.tensors import load_safely

HEAD_WIDTH = 64  # of RoBERTa's attention heads
PUBLISHED = {"text": 40, "fine_text": 256, "short_side": 800, "long_side": 1333}
HYPER_NUMBERS = {"image_size", "max_text_len", "num_heads"}  # what is read of a file's hyper-parameters
FINE_DROP_PATH = 0.4  # of every published configuration of stage 2; stage 1 has the default


class Tensors(dict[str, Tensor]):
    """Tensors of a checkpoint by official name; one that is asked for and missing is a WeightsError."""

    def __missing__(self, name: str) -> Tensor:
        raise WeightsError(f"the file has no {name}; it is incomplete")


@dataclass(frozen=True)
class OfficialFile:
    """Contents of a checkpoint: `state` by official name, without queues; `dropped` names; hyper-parameters."""

    stage: Literal["coarse", "fine"]
    state: Tensors
    dropped: list[str]
    hyper: dict[str, Any]


@dataclass
class Facts:
    """The configuration of a checkpoint and, for each part that shapes do not tell, where it comes from."""

    config: ExportConfig
    origins: list[str] = field(default_factory=list)


def read_official(path: str | Path, weights: Literal["model", "model_ema"] = "model") -> OfficialFile:
    """Tensors and hyper-parameters of a stage-1 or stage-2 checkpoint; `weights` chooses between the raw and the
    averaged ones of stage 2 (the release's own test reads the raw). Raises WeightsError."""
    content = load_safely(path)
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a checkpoint dict")
    key = "state_dict" if "state_dict" in content else weights
    if key not in content and not any(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} has no {key!r}; it has {', '.join(map(str, content)):.200}")
    raw = content.get(key, content)
    if not isinstance(raw, dict):
        raise WeightsError(f"{path}: {key!r} is a {type(raw).__name__}, not tensors by name")
    state = {str(name).removeprefix("module."): t for name, t in raw.items() if isinstance(t, Tensor)}
    coarse = any(name.startswith("vit_model.") for name in state)
    if not coarse and not any(name.startswith("fusion_backbone.") for name in state):
        some = ", ".join(list(state)[:3])[:200] or "no tensors"
        raise WeightsError(
            f"{path} holds no released weights: no names like vit_model.* or fusion_backbone.* ({some})"
        )
    dropped = sorted(name for name in state if is_queue(name))
    kept = Tensors({name: tensor for name, tensor in state.items() if not is_queue(name)})
    hyper = _hyper_parameters(path, content.get("hyper_parameters"))
    # Shapes of the queues tell the image size and the text length where the hyper-parameters do not.
    for name, queue in (("image_size", "image_input_queue"), ("max_text_len", "text_input_queue")):
        if queue in state and state[queue].ndim:
            hyper.setdefault(name, state[queue].shape[-1])
    return OfficialFile("coarse" if coarse else "fine", kept, dropped, hyper)


def derive(
    file: OfficialFile,
    pad_id: int,
    *,
    text_heads: int | None = None,
    max_text: int | None = None,
    image_size: int | None = None,
) -> Facts:
    """The configuration of the model in `file`; arguments override what shapes do not tell. Raises WeightsError
    where shapes contradict each other or the architecture."""
    coarse = file.stage == "coarse"
    image = "vit_model." if coarse else "fusion_backbone.backbone.body."
    text = "text_transformer." if coarse else "fusion_backbone.language_backbone.body.model."
    origins: list[str] = []
    model = _backbone_config(file, image, text, text_heads, origins)
    words = file.state[f"{text}embeddings.word_embeddings.weight"]
    rows = len(file.state[f"{text}embeddings.position_embeddings.weight"]) - pad_id - 1
    default = (PUBLISHED["text"] if coarse else PUBLISHED["fine_text"], "the published recipe")
    length, origin = _choose(max_text, file.hyper.get("max_text_len"), default)
    if length > rows:
        length, origin = rows, f"the position table (instead of {length} from {origin})"
    origins.append(f"max_text {length}: {origin}")
    if coarse:
        side, origin = _choose(image_size, file.hyper.get("image_size"), (32 * model.image.window, "32 x window"))
        origins.append(f"image_size {side}: {origin}")
        config = ExportConfig("coarse", model, len(words), pad_id, side, length, classifiers=_classifiers(file.state))
    else:
        side, origin = _choose(image_size, None, (PUBLISHED["short_side"], "the published recipe"))
        long_side = round(side * PUBLISHED["long_side"] / PUBLISHED["short_side"])
        origins.append(f"image sides {side}, at most {long_side}: {origin}")
        detector = _detector(file.state, length, origins)
        config = ExportConfig(
            "fine", model, len(words), pad_id, side, length, max_image_size=long_side, detector=detector
        )
    return Facts(config, origins)


def official_names(config: ExportConfig) -> dict[str, str]:
    """Our names -> official names of a model with this configuration."""
    model = config.model
    towers = (model.image.depths, model.text.layers, model.num_fused)
    if config.stage == "coarse":
        return coarse_names(*towers)
    made: dict[str, Any] = asdict(DetectorConfig()) | config.detector
    return fine_names(*towers, made["head_blocks"], len(made["strides"]))


def convert(file: OfficialFile, config: ExportConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors under our names, and the rest of the file under its official names (unused and derived tensors, kept
    so that the way back is complete)."""
    names = official_names(config)
    ours, rest = to_ours(file.state, names)
    return (from_official_fine(file.state, ours, names) if file.stage == "fine" else ours), rest


def write_official(path: str | Path, export: Export) -> list[str]:
    """An export as a file of the release's form: Lightning's `state_dict` and `hyper_parameters` (coarse) or a dict
    with `model` (fine) -> names written. Tensors that only the release has are there if the export came from it."""
    config, names = export.config, official_names(export.config)
    if config.stage == "coarse":
        state = to_official(export.tensors, names) | export.extras
        hyper = {"image_size": config.image_size, "max_text_len": config.max_text}
        hyper["num_heads"] = config.model.text.heads
        torch.save({"state_dict": state, "hyper_parameters": {"config": hyper}}, path)
    else:
        state = to_official_fine(export.tensors, names) | export.extras
        torch.save({"model": state}, path)
    return sorted(state)


# ---------------------------------------------------------------------------------------------- insides


def _hyper_parameters(path: str | Path, value: Any) -> dict[str, Any]:
    """Those of a checkpoint by name; numbers that the configuration needs are whole. Raises WeightsError."""
    hyper = _settings(path, value)
    nested = _settings(path, hyper.get("config", hyper))  # Lightning keeps the module's arguments: one is `config`
    for name in HYPER_NUMBERS & nested.keys():
        value = nested[name]
        if value is not None and (
            not isinstance(value, int | float | np.integer) or value != value // 1 or value < 1
        ):
            raise WeightsError(f"{path}: hyper_parameters: {name} is {value!r:.60}, not a whole number from 1")
        nested[name] = None if value is None else int(value)
    return nested


def _settings(path: str | Path, value: Any) -> dict[str, Any]:
    value = vars(value) if isinstance(value, argparse.Namespace) else {} if value is None else value
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: hyper_parameters are a {type(value).__name__}, not settings by name")
    return dict(value)


def _choose(given: int | None, hyper: int | None, default: tuple[int, str]) -> tuple[int, str]:
    """A value and its origin: the caller, the file's hyper-parameters, or a default, given with its origin."""
    if given is not None:
        return given, "given"
    if hyper is not None:
        return hyper, "the file"
    return default


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of consecutive indices i with names `prefix` + "i."."""
    indices = {name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)}
    count = len([entry for entry in indices if entry.isdecimal()])
    if {str(i) for i in range(count)} - indices:
        raise WeightsError(f"{prefix}*: indices {sorted(indices)} are not consecutive; the file is incomplete")
    return count


def _backbone_config(
    file: OfficialFile, image: str, text: str, text_heads: int | None, origins: list[str]
) -> ModelConfig:
    state = file.state
    patch, width = (
        state[f"{image}patch_embed.proj.weight"],
        state[f"{text}embeddings.word_embeddings.weight"].shape[1],
    )
    depths = tuple(_count(state, f"{image}layers.{s}.blocks.") for s in range(_count(state, f"{image}layers.")))
    tables = [state[f"{image}layers.{s}.blocks.0.attn.relative_position_bias_table"] for s in range(len(depths))]
    windows = {(round(len(table) ** 0.5) + 1) // 2 for table in tables}
    if len(windows) != 1:
        raise WeightsError(f"the stages have windows {sorted(windows)}; one side for all is expected")
    hidden = len(state[f"{image}layers.0.blocks.0.mlp.fc1.weight"])
    if tuple(patch.shape[1:]) != (3, 4, 4) or hidden != 4 * len(patch):
        raise WeightsError(f"patch {tuple(patch.shape)} and MLP width {hidden}: this is not a Swin of the usual form")
    default = (max(width // HEAD_WIDTH, 1), f"{HEAD_WIDTH} channels per head as in RoBERTa")
    heads, origin = _choose(text_heads, file.hyper.get("num_heads"), default)
    origins.append(f"text heads {heads}: {origin}")
    drop_path = ImageTowerConfig.drop_path
    if file.stage == "fine":
        drop_path = FINE_DROP_PATH
        origins.append(f"drop path {drop_path}: the published recipe")
    fused = sum(name.startswith(image) and name.endswith("attn.alpha_i2t") for name in state)
    return ModelConfig(
        image=ImageTowerConfig(
            embed_dim=len(patch),
            depths=depths,
            heads=tuple(table.shape[1] for table in tables),
            window=windows.pop(),
            drop_path=drop_path,
        ),
        text=TextTowerConfig(
            width=width,
            layers=_count(state, f"{text}encoder.layer."),
            heads=heads,
            intermediate=len(state[f"{text}encoder.layer.0.intermediate.dense.weight"]),
        ),
        num_fused=fused,
        head_width=len(state["cross_modal_text_transform.weight"]) if file.stage == "coarse" else width,
        query_norm=any(".norm_i2t_i." in name for name in state),
    )


def _classifiers(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Downstream heads of a stage-1 file and their numbers of classes."""
    named = {"vqa": "vqa_classifier.3.bias", "nlvr2": "nlvr2_classifier.3.bias"}
    return {task: len(state[name]) for task, name in named.items() if name in state}


def _detector(state: Mapping[str, Tensor], max_text: int, origins: list[str]) -> dict[str, Any]:
    """Arguments of FiberDetector from the shapes of a stage-2 file; of towers alone, those of a new detector."""
    head = "rpn.head."
    if not any(name.startswith(("rpn.", "fusion_backbone.backbone.fpn.")) for name in state):
        origins.append("pyramid and head: not in the file, which is a start for training; those of a new detector")
        return asdict(DetectorConfig()) | {"text_limit": max_text, "prompt_tuning": False}
    levels, block = _count(state, f"{head}scales."), state[f"{head}dyhead_tower.0.DyConv.0.conv.weight"]
    sizes = [64 * 2**i for i in range(levels)]
    names = [f"rpn.anchor_generator.cell_anchors.{i}" for i in range(levels)]
    cells = [state[name] for name in names if name in state]
    if len(cells) == levels:
        sizes = [round(float(cell[0, 2] - cell[0, 0])) + 1 for cell in cells]
    else:
        origins.append(f"anchor sizes {sizes}: the published recipe")
    return {
        "channels": block.shape[1],
        "head_channels": block.shape[0],
        "head_blocks": _count(state, f"{head}dyhead_tower."),
        "anchor_sizes": sizes,
        "strides": [8 * 2**i for i in range(levels)],
        "text_limit": max_text,
        "prompt_tuning": "fusion_backbone.tunable_linear.weight" in state,
    }
