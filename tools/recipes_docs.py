"""Write docs/recipes.md: every number of the configurations of full size beside the release's, from
configs/recipes.yaml.

    python tools/recipes_docs.py
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fiber.config.loading import load_config, parse_yaml
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config

REPO = Path(__file__).resolve().parents[1]
TABLE, PAGE = REPO / "configs" / "recipes.yaml", REPO / "docs" / "recipes.md"
SHARDS = "data/shards/"
HEAD = """# Recipes beside the release's

Written by `python tools/recipes_docs.py` from `configs/recipes.yaml`; `tests/config/test_recipes.py` holds that every
number of a configuration has a row, that it is the configuration's, and that a difference has its reason. Files are
those of [the release](https://github.com/microsoft/FIBER); a number after the colon is a line. What each key means:
[configuration keys](config.md).

In every configuration our own choice: {own}.

Without rows: {alone}.
"""


@dataclass(frozen=True)
class Row:
    """A key of a configuration: our value, the release's, its place (FILE:LINE), and why they differ ("" if not)."""

    key: str
    ours: Any
    release: Any
    where: str
    why: str


def table() -> dict[str, Any]:
    """`configs/recipes.yaml` as plain data: `alone`, `own`, `recipes`."""
    return parse_yaml(TABLE.read_text(), str(TABLE))


def names() -> list[str]:
    """The configurations that have a recipe, as stage1/vqa."""
    every = [f"{path.parent.name}/{path.stem}" for path in sorted(REPO.glob("configs/stage?/*.yaml"))]
    return [name for name in every if not any(fnmatchcase(name, pattern) for pattern in table()["alone"])]


def rows(name: str, recipes: dict[str, Any]) -> list[Row]:
    """The rows of a configuration, of all sections that hold for it; a later section wins."""
    found: dict[str, Row] = {}
    places: dict[str, str] = {}
    for patterns, section in recipes.items():
        file = places[patterns.split("/")[0]] = section.get("file") or places[patterns.split("/")[0]]
        if any(fnmatchcase(name, pattern) for pattern in patterns.split(", ")):
            for key, (ours, release, where, *why) in section["rows"].items():
                place = f"{file}:{where}" if isinstance(where, int) else where
                found[key] = Row(key, ours, release, place, " ".join(why))
    return sorted(found.values(), key=lambda row: row.key)


def values(name: str) -> dict[str, Any]:
    """Every key of a configuration as it is loaded, defaults included: dotted key -> value, lists as lists and
    training sets as "SET/SPLIT" or "SET/SPLIT x WEIGHT"."""
    kind = Stage1Config if name.startswith("stage1") else Stage2Config
    config = load_config(kind, REPO / "configs" / f"{name}.yaml")
    flat: dict[str, Any] = {}

    def walk(section: Any, prefix: str) -> None:
        for key, value in vars(section).items():
            if hasattr(value, "__dataclass_fields__"):
                walk(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = list(value) if isinstance(value, tuple) else value

    walk(config, "")
    sets = [(source.path.removeprefix(SHARDS), source.weight) for source in config.data.train]
    flat["data.train"] = [path if weight is None else f"{path} x {weight:g}" for path, weight in sets]
    return flat


def page() -> str:
    """The text of docs/recipes.md."""
    data = table()
    own = "; ".join(f"`{key}` ({why})" for key, why in data["own"].items())
    alone = "; ".join(f"`{name}` ({why})" for name, why in data["alone"].items())
    parts = [HEAD.format(own=own, alone=alone)]
    for name in names():
        parts.append(f"\n## {name}\n\n| key | ours | release | where | why we differ |\n|---|---|---|---|---|\n")
        for row in rows(name, data["recipes"]):
            cells = (f"`{row.key}`", _shown(row.ours), _shown(row.release), row.where, row.why)
            parts.append("| " + " | ".join(cells) + " |\n")
    return "".join(parts)


def _shown(value: Any) -> str:
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if type(value) is float
        else str(value)
    )


def main() -> int:
    """Run the command; -> exit status."""
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
