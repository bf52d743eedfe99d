"""Pickles of plain data, read by an unpickler that can build nothing else."""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

PLAIN: dict[tuple[str, str], Any] = {("collections", "defaultdict"): defaultdict}
PLAIN |= {
    (module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (int, float, list, dict)
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"it wants to build {module}.{name}")
        return PLAIN[module, name]


def load_plain(path: str | Path) -> Any:
    """What a pickle (of Python 2 or 3) holds: lists, dicts, tuples, strings and numbers. Raises ValueError naming the
    file for a pickle that would build anything else, and for no pickle at all."""
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a pickle of plain data: {error}") from None
