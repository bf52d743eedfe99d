"""`fiber train own_detector|own_retrieval|own_caption|own_pretrain data=S [init_from=MODEL] [key.path=value ...]`:
settings for one's own data that follow from the data, the model and the machine.

`expand` makes complete overrides of what the user gives, and says why; `closing` says what a finished run has brought
and what to do next. `own_facts.py` has what is looked at, `own_sizes.py` the rules.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fiber.cli.own_facts import Machine, SetSizes, captions_of, split_sets, start_model
from fiber.cli.own_sizes import NARROW, SMALL_TOWERS, Settings, detector, image_task
from fiber.cli.plan import training_order
from fiber.config.loading import apply_override, load_config, read_tree
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config
from fiber.data.prompts import PromptBuilder
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.text import load_tokenizer
from fiber.errors import ConfigError, ShardError
from fiber.tasks.memory import detector_bytes, pair_bytes
from fiber.weights.export import inherited_sizes
from fiber.weights.export_config import ExportConfig
from fiber.weights.hub import export_folder

T = TypeVar("T")

TASKS = {
    "own_detector": "regions",
    "own_retrieval": "retrieval_itm",
    "own_caption": "caption",
    "own_pretrain": "pretrain",
}
"""The shipped configurations that this is for, and their tasks."""

FIGURES = ("ap", "reranked_r_mean", "r_mean", "cider")
"""The figure that tells what a run is worth: the first that it has."""

FUSED_PASSES = {"retrieval_itm": 3, "caption": 1, "pretrain": 4}
EXAMPLE = "fiber train {name} data=SHARDS init_from=MODEL"


def expand(name: str, overrides: Sequence[str], ranks: int | None = None) -> tuple[list[str], list[str]]:
    """Complete overrides for the entrypoint of a configuration of TASKS, and lines that say what was chosen and why.

    overrides: `data=S`, a folder that `fiber shards boxes|pairs` wrote or one set in it; `init_from=MODEL`, a run
    directory, an export or a hub id; and any `key.path=value`, which wins. ranks: processes of the run; None takes
    one per visible card, or one on the CPU.

    Raises ConfigError, WeightsError or ShardError with one line that names what is missing.
    """
    data, users, given = _given(name, overrides)
    task, sets, init_from = TASKS[name], split_sets(data), given.get("init_from")
    if init_from is None and task != "pretrain":
        raise ConfigError(
            f"init_from: {name} starts from a model: a run directory, an export or a hub id "
            f"({EXAMPLE.format(name=name)}); `fiber train own_pretrain` makes one of pairs alone"
        )
    field = "boxes" if task == "regions" else "captions"
    own, machine, model = SetSizes.of(sets["train"], field), Machine.here(ranks), start_model(init_from)
    if own.images < machine.ranks:
        raise ConfigError(f"data: {own.images} training images are too few for {machine.ranks} ranks: use fewer")
    settings = Settings(given)
    evaluated, about = _evaluated(sets, own.images)
    settings.choose("data.train", [{"path": sets["train"], "field": field}])
    settings.choose("eval.data", [{"path": path, "field": field} for path in evaluated])
    settings.choose("data.workers", 0 if own.images < 200 else 4 if machine.card else 1)
    if task == "regions":
        assert model is not None  # init_from is given
        _detector(settings, own, "val" in sets, machine, model, users)
        amount = f"{own.annotations} boxes of {len(own.classes)} classes"
    else:
        _image_task(settings, task, own, "val" in sets, machine, model, users)
        amount = f"{own.annotations} captions"
    folder, said = _output(name, settings, given)
    settings.choose("output", folder)
    _own_tokenizer(settings, own.path, folder)
    head = f"{name}: {own.images} training images of {sets['train']} with {amount}; {about}"
    return settings.overrides() + users, [head, *settings.lines(), *said]


def _given(name: str, overrides: Sequence[str]) -> tuple[str, list[str], dict[str, Any]]:
    """(the folder of `data=`, the other overrides, their values by dotted key). Raises ConfigError."""
    data, users, tree = None, [], dict[str, Any]()
    for override in overrides:
        key, separator, value = override.partition("=")
        if key.strip() == "data" and separator and not value.lstrip().startswith("{"):
            data = value.strip()
        else:
            alone: dict[str, Any] = {}
            apply_override(alone, override)
            users += [f"{name}={json.dumps(leaf)}" for name, leaf in _flat(alone).items()] or [override]
            apply_override(tree, override)
    if not data:
        example = EXAMPLE.format(name=name)
        raise ConfigError(f"data: give the folder that `fiber shards boxes|pairs` wrote: {example}")
    return data, users, _flat(tree)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested sections, by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


MOST_WITHOUT_VAL = 500


def _evaluated(sets: Mapping[str, str], images: int) -> tuple[list[str], str]:
    """The sets to evaluate on, and what to say of it."""
    if "val" in sets:
        return [sets["val"]], f"evaluated on {sets['val']}"
    hint = "no val beside it (--val-share 0.2 of `fiber shards` keeps some back)"
    if images > MOST_WITHOUT_VAL:
        return [], f"{hint}: not evaluated"
    return [sets["train"]], f"{hint}: evaluated on the training images, which shows only that learning works"


def _config(kind: type[T], settings: Settings, users: Sequence[str]) -> T:
    """The configuration as it stands so far, to measure by."""
    return load_config(kind, os.devnull, ["output=unknown", *settings.overrides(), *users], inherited_sizes)


def _detector(
    settings: Settings, own: SetSizes, val: bool, machine: Machine, model: ExportConfig, users: Sequence[str]
) -> None:
    narrow = model.model.image.embed_dim < NARROW
    limit = settings.choose("max_text", model.max_text if model.stage == "fine" else 64 if narrow else 256)
    tokenizer = load_tokenizer(export_folder(settings.given["init_from"]))
    fit_all = len(PromptBuilder(tokenizer, limit).chunks(own.classes)) == 1

    def needs(now: Settings) -> tuple[int, int]:
        config = _config(Stage2Config, now, users)
        side = max(config.regions.short_sides)
        long = min(side * own.aspect, config.regions.max_side)
        return detector_bytes(config, model.vocab_size, _padded(side), _padded(long))

    detector(settings, own, val, model, machine, needs, fit_all)


def _padded(side: float) -> int:
    return -int(-side // 32) * 32


def _image_task(
    settings: Settings,
    task: str,
    own: SetSizes,
    val: bool,
    machine: Machine,
    model: ExportConfig | None,
    users: Sequence[str],
) -> None:
    given = settings.given
    towers = [given.get(f"model.{tower}.pretrained") for tower in ("image", "text")]
    if model is None and not machine.card and not any(towers):
        for key in ("model.image.pretrained", "model.text.pretrained"):
            settings.choose(key, None, "a small model from nothing: this machine has no card")
        for key, value in SMALL_TOWERS.items():
            settings.choose(key, value)
    vocabulary = model.vocab_size if model else 8_000 if "model.init" in settings.chosen else 50_265
    tokens = [len(text.split()) * 3 // 2 + 2 for text in own.texts]
    if model:
        tokenizer = load_tokenizer(given.get("tokenizer") or export_folder(given["init_from"]))
        tokens = [len(tokenizer.backend_tokenizer.encode(text[:2000]).ids) for text in own.texts]

    def needs(now: Settings) -> tuple[int, int]:
        return pair_bytes(_config(Stage1Config, now, users), vocabulary, FUSED_PASSES[task])

    image_task(settings, task, own, val, model, machine, needs, tokens)


def _own_tokenizer(settings: Settings, path: str, folder: str) -> None:
    """A model from nothing learns its vocabulary from the captions; the file stays with the run."""
    if "model.init" not in settings.chosen or settings.given.get("tokenizer"):
        return
    target = Path(folder) / "tokenizer"
    if not (Path(folder) / "config.yaml").is_file():  # else the run has begun with it
        train_bpe(captions_of(path), 8_000, target)
    settings.choose("tokenizer", str(target), "a vocabulary learned from the captions")


def _output(name: str, settings: Settings, given: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The run directory, and what to say of it: runs/NAME where it is new or of the same settings and data, else the
    next number. A run of the same settings goes on."""
    if "output" in given:
        return given["output"], []
    said: list[str] = []
    wanted = settings.chosen | dict(given)
    for number in range(1, 1000):
        folder = Path("runs") / (name if number == 1 else f"{name}_{number}")
        differs = _difference(folder, wanted) or _other_data(folder, name)
        if differs is None:
            return str(folder), [*said, f"  output={folder}"]
        said = [f"  {folder} is of other settings ({differs}): output={folder} would go on with it"]
    raise ConfigError("output: give a folder, runs/ is full")


def _difference(folder: Path, wanted: Mapping[str, Any]) -> str | None:
    """The first key in which a run's configuration differs; None where it does not, or there is no run."""
    if not (folder / "config.yaml").is_file():
        return None if not folder.exists() or not any(folder.glob("*.*")) else "no run"
    there = _flat_values(read_tree(folder / "config.yaml"))
    for key, value in _flat_values(wanted).items():
        if key not in ("tokenizer", "output") and there.get(key) != value:
            return f"{key} was {there.get(key)}, is {value}"
    return None


def _other_data(folder: Path, name: str) -> str | None:
    """What is to be said where the sets of a run of the same settings have been packed again since its newest
    checkpoint: it cannot go on with them. None where it can, or there is no checkpoint."""
    checkpoints = folder / "checkpoints"
    try:
        newest = checkpoints / (checkpoints / "latest").read_text().strip()
        state = json.loads((newest / "state.json").read_text())["state"]["stream"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    kind = Stage2Config if TASKS[name] == "regions" else Stage1Config
    config: Any = load_config(kind, folder / "config.yaml", lenient=True)
    try:
        training_order(config).resume(state)
    except ShardError:
        return f"{config.data.train[0].path} has been made again since"
    return None


def _flat_values(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested sections and lists, by dotted key."""
    if not isinstance(tree, Mapping | list | tuple):
        return {prefix: tree}
    pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    flat: dict[str, Any] = {}
    for key, value in pairs:
        flat |= _flat_values(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def closing(name: str, overrides: Sequence[str]) -> list[str]:
    """What a run has brought, to be said after it has ended: the model, its figure beside that of step 0, the next
    command. overrides: as `expand` gave them. Nothing where the run has not come to its end."""
    tree: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override)
    run = Path(tree["output"])
    try:
        summary = json.loads((run / "summary.json").read_text())
    except (OSError, ValueError):
        return []
    lines = [f"model: {run / 'export'} (commands take {run}, too)"]
    try:
        before = json.loads((run / "start.json").read_text())
    except (OSError, ValueError):
        before = {}
    trained, sets = Path(tree["data"]["train"][0]["path"]), [source["path"] for source in tree["eval"]["data"]]
    figure = next((key for key in FIGURES if key in summary.get("eval", {})), None)
    if figure is not None:
        after, start = summary["eval"][figure], before.get(figure)
        worse = start is not None and after < start
        lines.append(
            f"{figure} on {sets[0]}: {after:.3f}"
            + ("" if start is None else f", before training {start:.3f}")
            + (": WORSE than the model it started from; try a tenth of optim.lr" if worse else "")
        )
    test = trained.parent / "test"
    if any(test.glob("*.tar")):
        lines.append(f"figures to report: fiber eval {run} data={test}")
    use = {
        "own_detector": f"fiber detect --model {run} --image IMAGE ... --out found.png",
        "own_retrieval": f'fiber retrieve --model {run} --image FOLDER --text "WORDS"',
        "own_caption": f"fiber caption --model {run} --image IMAGE ...",
        "own_pretrain": f"fiber train own_retrieval data={trained.parent} init_from={run}",
    }
    return [*lines, f"next: {use[name]}"]
