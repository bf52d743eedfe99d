"""Typed, strict configuration: nested dataclasses filled from YAML and `a.b.c=value` overrides.

Every key is a field of a dataclass below; an unknown key, a wrong type or arithmetic that does not add up raises
`ConfigError` with one line that names the key. Here are the sections that both stages have; `config_stage1.py` and
`config_stage2.py` hold the others and the whole.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import socket
import sys
import time
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from fiber.errors import ConfigError

T = TypeVar("T")


# ---------------------------------------------------------------------------------------------- the sections


@dataclass(frozen=True)
class ImageTowerConfig:
    """Swin. `pretrained`: a timm model name or a file, read before training; None starts from scratch."""

    embed_dim: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 12
    drop_path: float = 0.1
    pretrained: str | None = None


@dataclass(frozen=True)
class TextTowerConfig:
    """RoBERTa. The vocabulary size comes from the tokenizer. `pretrained`: a hub name or a folder."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    dropout: float = 0.1
    pretrained: str | None = None


@dataclass(frozen=True)
class ModelConfig:
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    num_fused: int = 6  # image-block / text-layer pairs that exchange, counted from the top
    head_width: int = 768
    query_norm: bool = True  # LayerNorm on the image query of the cross-attention
    init: Literal["normal", "fan_in"] = "normal"
    checkpointing: bool = False  # recompute activations block by block in the backward pass


@dataclass(frozen=True)
class SourceConfig:
    """One shard folder (or `pipe:` / URL pattern) and which of its annotations are samples."""

    path: str
    field: str = "captions"
    weight: float | None = None  # None everywhere: each annotation once per epoch; else mixing proportions


@dataclass(frozen=True)
class DataConfig:
    train: tuple[SourceConfig, ...] = ()
    window_shards: int = 8  # shards whose samples are shuffled together
    workers: int = 2
    max_fault_share: float = 0.01  # unreadable samples tolerated, as a share of those read
    transform: Literal["fast", "pil"] = "fast"


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule. Multipliers scale `lr` per parameter group (training/optim.py says which)."""

    lr: float = 1e-5
    betas: tuple[float, ...] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup: float = 0.1  # below 1: a share of the steps; else a number of steps
    warmup_start: float = 0.0  # factor on lr at step 0
    schedule: Literal["linear", "step", "plateau"] = "linear"
    milestones: tuple[float, ...] = ()  # schedule "step": shares of the steps at which lr is multiplied by decay
    decay: float = 0.1
    patience: int = 3  # schedule "plateau": evaluations without gain in train.best before lr is multiplied by decay
    decay_drop: float = 0.0  # share of each milestone at which weight_decay is multiplied by decay; 0 never
    clip: float = 0.0  # global gradient norm; 0 does not clip
    cross_modal_multiplier: float = 5.0
    head_multiplier: float = 5.0
    gate_multiplier: float = 1.0  # on top of nothing else: gates take this one instead of cross_modal's
    text_multiplier: float = 1.0  # on top of the others: the text tower and its cross-attention to the image
    bias_multiplier: float = 1.0  # on top of the others
    layer_decay: float = 1.0  # on top of the others, once for each layer of a tower from its end; 1 is off


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 100_000
    global_batch: int = 4096  # = micro_batch x accumulation x world, checked
    micro_batch: int = 64
    accumulation: int = 1
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    offload: Literal["none", "optimizer", "all"] = "none"  # to host memory: optimizer states, or weights too
    log_every: int = 10
    save_every: int = 1000
    keep: int = 2  # checkpoints kept, newest first
    hang_timeout_s: float = 1800.0  # a step (or evaluation batch) longer than this ends the job
    max_nonfinite: int = 0  # steps with a non-finite loss to skip before stopping
    ema: float = 0.0  # decay of the averaged weights; 0 keeps none
    best: str | None = None  # evaluation figure whose highest value chooses the weights that a run keeps and exports
    stop_after: int = 0  # evaluations without gain in `best` after which training ends; 0 never


@dataclass(frozen=True)
class TuningConfig:
    """What trains. "full": everything. "frozen_towers": all but both towers. "lora": low-rank additions to the
    attention projections, and what lies outside the backbone. Region level only: "linear", the detector's last maps;
    "prompt", an offset on the text embeddings."""

    mode: Literal["full", "frozen_towers", "linear", "prompt", "lora"] = "full"
    lora_rank: int = 8
    lora_alpha: float = 16.0  # the additions are scaled by lora_alpha / lora_rank


@dataclass(frozen=True)
class EvalConfig:
    every: int = 0  # steps; 0 evaluates only at the end
    data: tuple[SourceConfig, ...] = ()
    batch: int = 64
    rerank_k: int = 128


@dataclass(frozen=True)
class TrackingConfig:
    wandb: Literal["online", "offline", "off"] = "off"
    project: str = "fiber"


# ---------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (`1e-5` is a float, `off` is a word) and no duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node)
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} appears twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag.rsplit(":", 1)[1] not in ("bool", "float")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:[Tt]rue|[Ff]alse)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)|\d[\d_]*\.\d*|\.\d+|\.(?:inf|nan))$"),
    list("-+0123456789."),
)


def _parse_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _apply_override(tree: dict, override: str) -> None:
    """Set `a.b.0.c=value` inside the nested dicts and lists of `tree`; the value is YAML."""
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"override {override!r}: write key.path=value")
    value, node, parts = _parse_yaml(text, f"override {key}"), tree, key.strip().split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(f"{key}: {'.'.join(parts[:depth])} has {len(node)} entries, no index {part!r}")
            part = int(part)
        elif not isinstance(node, dict):
            raise ConfigError(f"{key}: {'.'.join(parts[:depth])} is a value, it has no key {part!r}")
        if depth == len(parts) - 1:
            node[part] = value
        else:
            if isinstance(node, dict) and node.get(part) is None:
                node[part] = {}
            node = node[part]


# ---------------------------------------------------------------------------------------------- typed construction


def _build(kind: Any, value: Any, key: str) -> Any:
    """`value` (plain YAML data) as type `kind`, or a ConfigError naming `key`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, key)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _build(next(a for a in arguments if a is not type(None)), value, key)
    if origin is Literal:
        if any(value == a and type(value) is type(a) for a in arguments):
            return value
        raise ConfigError(f"{key}: {value!r} is not one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_build(arguments[0], item, f"{key}.{i}") for i, item in enumerate(value))
        raise ConfigError(f"{key}: expected a list, got {value!r}")
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind is int and type(value) is float and value.is_integer():
        return int(value)  # 1e5 steps
    if type(value) is kind:
        return value
    raise ConfigError(f"{key}: expected {kind.__name__}, got {value!r}")


def _build_dataclass(kind: type[T], value: Any, key: str) -> T:
    prefix = f"{key}." if key else ""
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(f"{key or 'configuration'}: expected keys and values, got {value!r}")
    kinds = typing.get_type_hints(kind)
    for name in value:
        if name not in kinds:
            near = difflib.get_close_matches(str(name), kinds, n=1, cutoff=0.0)
            raise ConfigError(f"{prefix}{name}: unknown key; nearest valid key is {prefix}{near[0]}")
    for spec in dataclasses.fields(kind):
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and spec.name not in value:
            raise ConfigError(f"{prefix}{spec.name}: missing, it has no default")
    return kind(**{name: _build(kinds[name], item, prefix + name) for name, item in value.items()})


def load_config(
    kind: type[T],
    path: str | Path,
    overrides: Sequence[str] = (),
    inherit: Callable[[str], dict[str, Any]] | None = None,
    lenient: bool = False,
) -> T:
    """Read `path`, apply the overrides in order, return a `kind` instance.

    inherit: value of the key `init_from` -> sections whose keys stand in for those that are given neither in the file
    nor as an override: a run has the sizes of the model that it starts from.

    Raises ConfigError (one line) for an unreadable file, an unknown key, a wrong type or a missing required key.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    tree = _parse_yaml(text, str(path)) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values at the top level")
    for override in overrides:
        _apply_override(tree, override)
    if inherit is not None and tree.get("init_from") is not None:
        known = typing.get_type_hints(kind)
        sections = {name: section for name, section in inherit(tree["init_from"]).items() if name in known}
        tree = _filled(tree, sections)
    return _build_dataclass(kind, _known(kind, tree) if lenient else tree, "")


def _known(kind: Any, tree: Any) -> Any:
    if not dataclasses.is_dataclass(kind) or not isinstance(tree, dict):
        return tree
    kinds = typing.get_type_hints(kind)
    return {name: _known(kinds[name], value) for name, value in tree.items() if name in kinds}


def _filled(given: Any, below: Any) -> Any:
    """`given`, with what it lacks from `below`, key by key."""
    if not isinstance(given, dict) or not isinstance(below, dict):
        return given
    return below | {name: _filled(value, below.get(name)) for name, value in given.items()}


def to_dict(config: Any) -> dict:
    """The resolved configuration as plain data: what `config.yaml` and `load_config` exchange."""
    return {spec.name: _plain(getattr(config, spec.name)) for spec in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def save_config(config: Any, path: str | Path) -> None:
    """Write the resolved configuration; `load_config` of the file gives an equal object."""
    Path(path).write_text(to_yaml(config))


def to_yaml(config: Any) -> str:
    """The text that `save_config` writes."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


# ---------------------------------------------------------------------------------------------- validation


def validate_training(config: Any, world: int | None) -> None:
    """Checks shared by both stages: positive sizes, batch arithmetic, training and evaluation shards. No device is
    touched and no shard is opened. `config` has the sections `train`, `data`, `optim`, `eval`, `tuning`. `world` is
    None for an evaluation, which needs neither training data nor batches that add up."""
    if world is not None:
        _check_train(config.train, world)
        require(bool(config.data.train), "data.train: no training data; give a list of {path, field, weight}")
    else:
        require(bool(config.eval.data), "eval.data: nothing to evaluate on; give a list of {path, field}")
    _check_optim(config.optim)
    _check_selection(config)
    tuning = config.tuning
    require(tuning.lora_rank >= 1, f"tuning.lora_rank: must be at least 1, got {tuning.lora_rank}")
    require(tuning.lora_alpha > 0, f"tuning.lora_alpha: must be positive, got {tuning.lora_alpha}")
    weighted = [source.weight is not None for source in config.data.train]
    require(all(weighted) or not any(weighted), "data.train: give a weight to every source or to none")
    require(config.data.workers >= 0, "data.workers: must not be negative")
    training = () if world is None else config.data.train
    for section, sources in (("data.train", training), ("eval.data", config.eval.data)):
        for i, source in enumerate(sources):
            _check_shards(f"{section}.{i}.path", source.path)


def _check_train(train: TrainConfig, world: int) -> None:
    for name in ("steps", "global_batch", "micro_batch", "accumulation", "log_every", "save_every", "keep"):
        require(getattr(train, name) >= 1, f"train.{name}: must be at least 1, got {getattr(train, name)}")
    product = train.micro_batch * train.accumulation * world
    require(
        product == train.global_batch,
        f"train.global_batch: {train.global_batch} is not micro_batch {train.micro_batch} x accumulation "
        f"{train.accumulation} x {world} ranks = {product}",
    )
    require(train.hang_timeout_s > 0, "train.hang_timeout_s: must be positive")
    require(0 <= train.ema < 1, f"train.ema: must lie in [0, 1), got {train.ema}")
    require(
        train.offload != "all" or train.zero_stage == 3,
        f"train.offload: all needs train.zero_stage 3, got {train.zero_stage}",
    )
    require(
        train.offload == "none" or train.zero_stage >= 1,
        "train.offload: optimizer needs train.zero_stage 1 or more",
    )
    require(
        train.precision == "fp32" or train.zero_stage >= 1,
        f"train.precision: {train.precision} needs train.zero_stage 1 or more (below it DeepSpeed cannot accumulate "
        "gradients in fp32); on one rank stage 1 shards nothing",
    )


def _check_optim(optim: OptimConfig) -> None:
    require(optim.lr > 0, f"optim.lr: must be positive, got {optim.lr}")
    require(len(optim.betas) == 2, f"optim.betas: expected two numbers, got {list(optim.betas)}")
    require(optim.warmup >= 0, "optim.warmup: must not be negative")
    require(
        (optim.schedule == "step") == bool(optim.milestones),
        "optim.milestones: belongs to optim.schedule step, and that schedule needs it",
    )
    require(0 < optim.layer_decay <= 1, f"optim.layer_decay: must lie in (0, 1], got {optim.layer_decay}")
    require(0 <= optim.decay_drop <= 1, f"optim.decay_drop: must lie in [0, 1], got {optim.decay_drop}")
    require(
        optim.decay_drop == 0 or optim.schedule == "step",
        "optim.decay_drop: belongs to optim.schedule step, whose milestones it precedes",
    )
    require(optim.patience >= 1, f"optim.patience: must be at least 1, got {optim.patience}")


def _check_selection(config: Any) -> None:
    """What chooses by a figure of the evaluation needs its name, and evaluations."""
    train, evaluation = config.train, config.eval
    require(train.stop_after >= 0, f"train.stop_after: must not be negative, got {train.stop_after}")
    require(
        train.best is not None or (config.optim.schedule != "plateau" and train.stop_after == 0),
        "train.best: optim.schedule plateau and train.stop_after need it: the evaluation figure that tells a gain",
    )
    require(
        train.best is None or (evaluation.every >= 1 and bool(evaluation.data)),
        "train.best: needs eval.every and eval.data, evaluations to choose from",
    )


def check_model(config: Any) -> None:
    """Sizes of the towers and of the fusion; the text limit; the starting point."""
    model, stages = config.model, len(config.model.image.depths)
    require(
        len(model.image.heads) == stages,
        f"model.image.heads: {stages} stages in depths need {stages} numbers, got {len(model.image.heads)}",
    )
    blocks, layers = sum(model.image.depths), model.text.layers
    require(
        1 <= model.num_fused <= min(blocks, layers),
        f"model.num_fused: must lie between 1 and {min(blocks, layers)} (the image tower has {blocks} blocks, "
        f"the text tower {layers} layers), got {model.num_fused}",
    )
    require(
        model.text.width % model.text.heads == 0,
        f"model.text.width: {model.text.width} is not a multiple of model.text.heads {model.text.heads}",
    )
    require(
        config.max_text >= 3,
        f"max_text: must hold at least one token between the marks, got {config.max_text}",
    )


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def _check_shards(key: str, path: str) -> None:
    if path.startswith("pipe:") or "://" in path:
        return  # remote: known only when read
    folder = Path(path)
    require(folder.is_dir(), f"{key}: no folder {path}")
    require(any(folder.glob("*.tar")), f"{key}: no .tar shards in {path}")


# ---------------------------------------------------------------------------------------------- the command line


@dataclass(frozen=True)
class Command:
    """A parsed command line: `SCRIPT --config FILE [--mode train|eval] [key.path=value ...]`."""

    config: Any
    mode: Literal["train", "eval"]


def parse_command(
    kind: type,
    check: Callable[[Any, int | None], None],
    argv: Sequence[str] | None = None,
    inherit: Callable[[str], dict[str, Any]] | None = None,
) -> Command:
    """Parse, build and check the configuration of an entrypoint; on a bad one say why on one rank and exit with 2.

    `check(config, world)` raises ConfigError. The world size is the launcher's WORLD_SIZE, 1 without one; None with
    --mode eval. `inherit` as in `load_config`.
    """
    parser = argparse.ArgumentParser(usage="%(prog)s --config FILE [--mode train|eval] [key.path=value ...]")
    parser.add_argument("--config", required=True)
    parser.add_argument("--mode", choices=("train", "eval"), default="train")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher's
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    arguments = parser.parse_intermixed_args(argv)  # overrides may stand before and after options
    try:
        config = load_config(kind, arguments.config, arguments.overrides, inherit)
        check(config, int(os.environ.get("WORLD_SIZE", "1")) if arguments.mode == "train" else None)
    except ConfigError as error:
        exit_with(error)
    return Command(config, arguments.mode)


def exit_with(error: Exception, code: int = 2) -> typing.NoReturn:
    """End this rank with one line on stderr. Rank 0 speaks; another rank speaks only if it outlives rank 0's turn,
    because then the trouble (a folder missing on one machine, say) is its own."""
    rank = int(os.environ.get("RANK", "0"))
    if rank != 0:
        time.sleep(10.0)  # the launcher ends the job as soon as rank 0 has exited
    where = "" if rank == 0 else f" (rank {rank} on {socket.gethostname()})"
    print(f"error: {error}{where}", file=sys.stderr, flush=True)
    sys.exit(code)
