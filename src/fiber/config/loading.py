"""Reading and writing configurations: YAML and `a.b.c=value` overrides into the dataclasses of this room.

Every mistake is a `ConfigError` of one line that names the key and the fix.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from fiber.errors import ConfigError, without_secrets

T = TypeVar("T")

RENAMED = {"regions.pictures": "regions.figures"}
"""Keys of older runs' config.yaml, and what they are called now."""


# ---------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars (`1e-5` is a float, 010 is ten, `off`, 1:30 and 2026-01-31 are words) and no duplicate
    keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys differ. Raises ConfigError."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node)
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} appears twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0 if text[:2] in ("0o", "0x") else 10)


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = loader.construct_scalar(node)
    # The shell leaves data.train.0.path=~/set alone.
    return os.path.expanduser(text) if text.startswith("~/") else text


# The rules are a copy of this class's own: those of the parent stay as they are.
_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^([Tt]rue|[Ff]alse|TRUE|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+0123456789."),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:str", _text)


def parse_yaml(text: str, origin: str) -> Any:
    """Plain data of a YAML text. Raises ConfigError naming `origin`."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    except (ConfigError, ValueError, TypeError, RecursionError) as error:  # TypeError: a list as a key
        raise ConfigError(f"{origin}: {error}") from None


def _override_value(key: str, text: str) -> Any:
    """The value of `key=text`: YAML, but a plain word keeps what follows a `#`, and nothing at all is an empty
    text."""
    if text.strip() == "":
        return ""
    if " #" in text and text.lstrip()[0] not in "\"'[{":
        return text
    return parse_yaml(text, f"override {key}")


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set `a.b.0.c=value` inside the nested dicts and lists of `tree`. Raises ConfigError."""
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"override {override!r}: write key.path=value")
    value, parts = _override_value(key, text), key.strip().split(".")
    node: Any = tree
    for depth, part in enumerate(parts):
        position: str | int = part
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise ConfigError(f"{key}: {'.'.join(parts[:depth])} has {len(node)} entries, no index {part!r}")
            position = int(part)
        elif not isinstance(node, dict):
            raise ConfigError(f"{key}: {'.'.join(parts[:depth])} is a value, it has no key {part!r}")
        if depth == len(parts) - 1:
            node[position] = value
        else:
            if isinstance(node, dict) and node.get(position) is None:
                node[position] = {}
            node = node[position]


# ---------------------------------------------------------------------------------------------- loading


def load_config(
    kind: type[T],
    path: str | Path,
    overrides: Sequence[str] = (),
    inherit: Callable[[str, str | None], dict[str, Any]] | None = None,
    lenient: bool = False,
) -> T:
    """Read `path`, apply the overrides in order, return a `kind` instance.

    inherit: values of the keys `init_from` and `output` -> sections whose keys stand in for those given neither in
    the file nor as an override: a run has the sizes of the model that it starts from. lenient: for a file of an older
    version of this code, keys that are not known any more are said on stderr and left out.

    Raises ConfigError (one line) for an unreadable file, an unknown key, a wrong type, a value out of its range or a
    missing required key.
    """
    tree = read_tree(path, overrides)
    if inherit is not None and isinstance(tree.get("init_from"), str):
        tree = _filled(tree, _known(kind, inherit(tree["init_from"], tree.get("output"))))
    return build_config(kind, _forgiven(kind, tree, str(path)) if lenient else tree)


def read_tree(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain data of a file with the overrides applied: what is given, and nothing else. Raises ConfigError."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: not a text file ({error.reason} at byte {error.start})") from None
    tree = parse_yaml(text, str(path)) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values at the top level")
    for override in overrides:
        apply_override(tree, override)
    return tree


def build_config(kind: type[T], tree: dict[str, Any]) -> T:
    """Plain data as a `kind`. Raises ConfigError."""
    tree = _checked(kind, tree, "")
    adapter: TypeAdapter[T] = _adapter(kind)
    try:
        return adapter.validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(_one_line(kind, error)) from None
    except (TypeError, ValueError) as error:  # what JSON has no form for: an odd key, an alias of itself
        raise ConfigError(f"a value cannot be read: {error}") from None


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}  # building one takes a while


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


@functools.cache
def _sections(kind: Any) -> dict[str, Any]:
    """The keys of a section and, for a section in turn, its dataclass; for a list of sections, [dataclass]."""
    sections: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind).items():
        listed = [h for h in typing.get_args(hint) if dataclasses.is_dataclass(h)]
        sections[name] = hint if dataclasses.is_dataclass(hint) else listed[:1] or None
    return sections


def _checked(kind: Any, tree: Any, key: str) -> Any:
    """`tree` with empty sections filled in. Raises ConfigError for an unknown key, with the nearest one."""
    if isinstance(kind, list):
        if not isinstance(tree, list):
            raise ConfigError(f"{key}: expected a list, got {tree!r}")
        return [_checked(kind[0], item, f"{key}.{i}") for i, item in enumerate(tree)]
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        return tree
    prefix, known = f"{key}." if key else "", _sections(kind)
    for name in tree:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
            raise ConfigError(f"{prefix}{name}: unknown key; nearest valid key is {prefix}{near[0]}")
    return {
        name: value if known[name] is None else _checked(known[name], value, prefix + name)
        for name, value in tree.items()
    }


def _known(kind: Any, tree: Any) -> Any:
    """`tree` without the keys that `kind` does not have."""
    if isinstance(kind, list) and isinstance(tree, list):
        return [_known(kind[0], item) for item in tree]
    if kind is None or not isinstance(tree, dict):
        return tree
    known = _sections(kind)
    return {name: _known(known[name], value) for name, value in tree.items() if name in known}


def _forgiven(kind: Any, tree: dict[str, Any], origin: str) -> dict[str, Any]:
    for old, new in RENAMED.items():
        section, _, name = old.rpartition(".")
        if name in (given := tree.get(section) or {}):
            given[new.rpartition(".")[2]] = given.pop(name)
    kept = _known(kind, tree)
    if kept != tree and os.environ.get("RANK", "0") == "0":
        print(f"{origin}: keys that are not known any more are left out", file=sys.stderr)
    return kept


def _filled(given: Any, below: Any) -> Any:
    """`given`, with what it lacks from `below`, key by key."""
    if not isinstance(given, dict) or not isinstance(below, dict):
        return given
    return below | {name: _filled(value, below.get(name)) for name, value in given.items()}


EXPECTED = {
    "int_type": "int",
    "int_from_float": "int",
    "float_type": "float",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dataclass_type": "keys and values",
    "dict_type": "keys and values",
}
RANGES = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
}


def _one_line(kind: Any, error: ValidationError) -> str:
    """The first thing that is wrong, by key."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("constrained"))
    what, value, context = first["type"], first["input"], first.get("ctx", {})
    if what == "missing":
        return f"{key}: missing, it has no default"
    if what == "literal_error":
        return f"{key}: {value!r} is not one of {context['expected'].replace(chr(39), '').replace(' or ', ', ')}"
    if what in EXPECTED:
        return f"{key}: expected {EXPECTED[what]}, got {value!r}"
    if what in RANGES:
        return f"{key}: {RANGES[what].format(**context)}, got {value!r}"
    return f"{key}: {first['msg']}, got {value!r}".replace("\n", " ")


# ---------------------------------------------------------------------------------------------- writing


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved configuration as plain data: what `config.yaml` and `load_config` exchange."""
    return {spec.name: _plain(getattr(config, spec.name)) for spec in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def to_yaml(config: Any) -> str:
    """The resolved configuration as a file; `load_config` of it gives an equal object but for secrets of URLs, which
    are left out: runs are passed on."""
    return without_secrets(yaml.safe_dump(to_dict(config), sort_keys=False))
