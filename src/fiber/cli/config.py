"""`fiber config`: the configurations that are shipped."""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
from pathlib import Path
from typing import Any

from fiber.errors import ConfigError

DESCRIPTION = """The configurations that are shipped: a recipe each, with what it needs and what it gives.

    fiber config list                                    every name with its first line
    fiber config show stage2/odinw                       the file
    fiber config show stage2/odinw --all                 every key with its value, those left out too
    fiber config copy stage2/odinw mine.yaml             a copy to edit; then: fiber train mine.yaml

Wherever a command takes a configuration it takes one of these names or a file.
"""
STAGES = ("stage1", "stage2")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|copy")
    actions.add_parser("list", help="every name with its first line")
    show = actions.add_parser("show", help="print one")
    copy = actions.add_parser("copy", help="copy one to edit it")
    for action in (show, copy):
        action.add_argument("name", help="of `fiber config list`")
    show.add_argument("--all", action="store_true", help="every key with its value")
    copy.add_argument("file", type=Path, help="FILE.yaml or a folder")


def run(arguments: argparse.Namespace) -> int:
    """List, show or copy; -> exit status."""
    if arguments.action == "list":
        print(listing())
        return 0
    source = find(arguments.name)
    if arguments.action == "show":
        print(resolved(source) if arguments.all else source.read_text(), end="")
        return 0
    target = arguments.file / source.name if arguments.file.is_dir() else arguments.file
    if target.exists():
        raise ConfigError(f"{target} exists already; give another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    # An editor that checks keys finds the schema from wherever the copy lies.
    schema = source.parents[1] / f"{source.parent.name}.schema.json"
    target.write_text(target.read_text().replace(f"$schema=../{schema.name}", f"$schema={schema}", 1))
    print(f"wrote {target}; next: fiber train {target}", file=sys.stderr)
    return 0


# ---------------------------------------------------------------------------------------------- by name


def shipped() -> Path:
    """The folder of the shipped configurations: in the installed package, or beside `src/` of a clone."""
    package = Path(__file__).resolve().parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parents[1] / "configs"


def is_shipped(file: Path) -> bool:
    """Whether a configuration is one of the shipped ones, not a copy."""
    return shipped() in file.resolve().parents


def names() -> list[str]:
    """`stage2/odinw` and so on."""
    return sorted(
        f"{file.parent.name}/{file.stem}" for stage in STAGES for file in (shipped() / stage).glob("*.yaml")
    )


def find(name: str) -> Path:
    """The file of a configuration: a path, or a shipped name with or without its stage. Raises ConfigError."""
    if Path(name).is_file():
        return Path(name)
    if Path(name).is_dir():
        raise ConfigError(f"{name} is a folder without config.yaml: give a run directory or a configuration")
    plain = name.removesuffix(".yaml")
    known = names()
    fitting = [each for each in known if plain in (each, each.split("/")[1])]
    if len(fitting) == 1:
        return shipped() / f"{fitting[0]}.yaml"
    if fitting:
        raise ConfigError(f"{name} is in both stages: say {' or '.join(fitting)}")
    near = difflib.get_close_matches(plain, [*known, *(each.split("/")[1] for each in known)], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"no configuration {name}: give a file, or a name of `fiber config list`{hint}")


def first_line(file: Path) -> str:
    """What a configuration is for: the first line of its comment."""
    lines = (line.lstrip("# ").rstrip() for line in file.read_text().splitlines() if line.startswith("#"))
    return next((line for line in lines if line and "$schema" not in line), "")


def listing() -> str:
    """Every name with its first line."""
    return "\n".join(f"{name:32} {first_line(shipped() / f'{name}.yaml')}" for name in names())


# ---------------------------------------------------------------------------------------------- by contents


def kind_of(tree: dict[str, Any], file: Path) -> Any:
    """Stage1Config or Stage2Config, whichever has the keys of a configuration's top level. Raises ConfigError."""
    import dataclasses

    from fiber.config.stage1 import Stage1Config
    from fiber.config.stage2 import Stage2Config

    if is_shipped(file):
        return Stage1Config if file.resolve().parent.name == "stage1" else Stage2Config
    known = {kind: {field.name for field in dataclasses.fields(kind)} for kind in (Stage1Config, Stage2Config)}
    only1 = sorted(known[Stage1Config] - known[Stage2Config])
    only2 = sorted(known[Stage2Config] - known[Stage1Config])
    is1, is2 = bool(tree.keys() & only1), bool(tree.keys() & only2)
    if is1 == is2:
        what = "has keys of both stages" if is1 else "could be of either stage"
        raise ConfigError(
            f"{file} {what}: at image level give {', '.join(only1)}; at region level {', '.join(only2)}"
        )
    return Stage1Config if is1 else Stage2Config


def resolved(file: Path) -> str:
    """Every key with its value, as YAML."""
    from fiber.config.loading import load_config, read_tree, to_yaml

    return to_yaml(load_config(kind_of(read_tree(file), file), file))
