"""Write docs/config.md and the JSON schemas beside the configurations, from the code that checks them.

    python tools/config_docs.py

Editors that know YAML schemas (the yaml-language-server line at the head of each configuration) complete keys and
mark wrong ones by them.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import typing
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config
from fiber.tasks.table import TABLE

REPO = Path(__file__).resolve().parents[1]
STAGES = {"stage1": Stage1Config, "stage2": Stage2Config}
HEAD = """# Configuration keys

Written by `python tools/config_docs.py`; a test holds that it is up to date. A run is configured by one YAML file and
`key.path=value` overrides after it, which win. An unknown key, a wrong type or a value out of its range ends in one
line that names the key, with exit status 2, before anything is loaded. How a run goes: [training](training.md); the
values of the paper's recipes beside the release's: [recipes](recipes.md).

YAML is read as YAML 1.2: `1e-5` is a number, `010` is ten, `off`, `1:30` and `2026-01-31` are words. In an override a
plain word keeps what follows a `#`; nothing after the `=` is an empty text, `null` is no value.

Shares and steps: `optim.milestones` and `optim.decay_drop` are shares of the run. `optim.warmup` is a share below 1
and a number of steps from 1 on.
"""


def comments(kind: type) -> dict[str, str]:
    """What stands behind each field of a dataclass, its base classes included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            for line in inspect.getsource(base).splitlines():
                if match := re.match(r"    (\w+): .*?  # (.*)$", line):
                    found[match[1]] = match[2]
    return found


def value_range(hint: Any) -> str:
    """The type of a key in words, with its bounds."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{json.dumps(value) if not isinstance(value, str) else value}`" for value in arguments)
    if type(None) in arguments:
        return f"{value_range(next(a for a in arguments if a is not type(None)))} or null"
    if typing.get_origin(hint) is tuple:
        return f"list of {value_range(arguments[0])}"
    if typing.get_origin(hint) is typing.Annotated:
        inner, bounds = value_range(arguments[0]), []
        for constraint in arguments[1:]:
            parts = constraint.metadata if isinstance(constraint, FieldInfo) else [constraint]
            for kind, sign, name in ((Gt, ">", "gt"), (Ge, "≥", "ge"), (Lt, "<", "lt"), (Le, "≤", "le")):
                bounds += [f"{sign} {getattr(part, name):g}" for part in parts if isinstance(part, kind)]
        return " ".join([inner, ", ".join(bounds)]).strip()
    if dataclasses.is_dataclass(hint):
        return "{" + ", ".join(field.name for field in dataclasses.fields(hint)) + "}"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(hint, str(hint))


def table(kind: type, prefix: str = "") -> list[str]:
    """Rows of all keys of a section, and the sections in it below."""
    hints, said = typing.get_type_hints(kind, include_extras=True), comments(kind)
    rows, below = [], []
    for field in dataclasses.fields(kind):
        hint, key = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            below += ["", f"### `{key}`", "", inspect.getdoc(hint) or "", "", *table(hint, f"{key}.")]
        else:
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            default = "required" if required else f"`{json.dumps(field.default)}`"
            rows.append(f"| `{key}` | {value_range(hint)} | {default} | {said.get(field.name, '')} |")
    head = ["| key | value | default | meaning |", "|---|---|---|---|"] if rows else []
    return [*head, *rows, *below]


def page() -> str:
    """docs/config.md."""
    lines = [HEAD.rstrip(), ""]
    for name, kind in STAGES.items():
        level = "image" if name == "stage1" else "region"
        lines += [f"## {name.replace('stage', 'Stage ')}: {level} level", ""]
        if name == "stage1":
            lines += ["| task | reads the fields | sections of its own |", "|---|---|---|"]
            for row in TABLE:
                if row.stage == "coarse":
                    fields, sections = (", ".join(f"`{x}`" for x in part) for part in (row.fields, row.sections))
                    lines.append(f"| `{row.name}` | {fields} | {sections} |")
            lines.append("")
        lines += [*table(kind), ""]
    return "\n".join(lines).rstrip() + "\n"


def schema(kind: type) -> str:
    """The JSON schema of a stage, with what each key means."""
    tree = TypeAdapter(kind).json_schema()
    kinds = {k.__name__: k for k in _dataclasses(kind)}
    for name, part in [*tree.get("$defs", {}).items(), (kind.__name__, tree)]:
        for key, text in comments(kinds[name]).items():
            if key in part["properties"]:
                part["properties"][key]["description"] = text
    tree["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def _dataclasses(kind: Any) -> set[type]:
    found = {kind}
    for hint in typing.get_type_hints(kind).values():
        for inner in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(inner):
                found |= _dataclasses(inner)
    return found


def files() -> dict[Path, str]:
    """Every generated file and its text."""
    texts = {REPO / "configs" / f"{name}.schema.json": schema(kind) for name, kind in STAGES.items()}
    return texts | {REPO / "docs" / "config.md": page()}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
        print(path.relative_to(REPO), file=sys.stderr)
