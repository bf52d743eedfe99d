"""Names of classes given by the user instead of those of the annotation files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fiber.data.convert.items import ConversionError
from fiber.data.records import check_categories

Classes = list[dict[str, Any]]
"""[{"id", "name"}], and `match` where annotations know the class by another name than its own."""


def renamed(classes: Classes, path: Path | None, named: bool) -> Classes:
    """The classes under the names of a text file: lines `old = new`, or one name per line in the order of the ids.

    named: annotations know classes by name, not by number (VOC, labelme): then lines of names are the classes of
    the set, in this order. Raises ConversionError where the file does not fit.
    """
    if path is None:
        return _checked(classes, "the classes")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: cannot be read as UTF-8 text (save it so): {error}") from None
    if not lines:
        raise ConversionError(f"{path}: no names in it")
    if any("=" in line for line in lines):
        return _checked(_mapped(classes, lines, path), path)
    if named:
        return _checked([{"id": i, "name": name} for i, name in enumerate(lines, 1)], path)
    if classes and len(lines) != len(classes):
        raise ConversionError(f"{path}: {len(lines)} names for {len(classes)} classes; to rename some: `old = new`")
    ids = [entry["id"] for entry in classes] or list(range(1, len(lines) + 1))
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    return _checked([{**(classes[i] if classes else {}), "id": ids[i], "name": name}
                     for i, name in zip(order, lines, strict=True)], path)  # fmt: skip


def _mapped(classes: Classes, lines: list[str], path: Path) -> Classes:
    new: dict[str, str] = {}
    for line in lines:
        old, sign, name = (part.strip() for part in line.partition("="))
        if not sign or not old or not name:
            raise ConversionError(f"{path}: {line!r}: every line must be `old = new`")
        new[old] = name
    known = {str(entry["name"]) for entry in classes}
    if unknown := [old for old in new if old not in known]:
        raise ConversionError(f"{path}: no class is called {unknown[0]!r}; they are {', '.join(sorted(known))[:300]}")
    return [{**entry, "match": entry["name"], "name": new.get(entry["name"], entry["name"])} for entry in classes]


def _checked(classes: Classes, origin: object) -> Classes:
    try:
        check_categories(classes)
    except ValueError as error:
        raise ConversionError(f"{origin}: {error}") from None
    return classes


def by_name(classes: Classes) -> dict[str, int]:
    """What annotations call a class -> its id."""
    return {str(entry.get("match") or entry["name"]): entry["id"] for entry in classes}


def without_match(classes: Classes) -> Classes:
    """The classes as dataset.json has them."""
    return [{key: value for key, value in entry.items() if key != "match"} for entry in classes]
