"""What lies in an output folder: a set that this package made, one broken off, or what is not its own.

Only files that were written here are ever removed: the tars that the index of a packed set names, or links.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fiber.data.convert.items import ConversionError, RawDataset
from fiber.data.convert.pieces import PARTIAL
from fiber.data.convert.splits import NAMES
from fiber.data.shards import RECORDS

CHANGED = "the source has changed since"


def check_sources(sources: Iterable[tuple[RawDataset, Path]]) -> None:
    """Raises ConversionError where a folder to be written has the tars that are read."""
    pairs = list(sources)
    folders = {out.resolve() for _, out in pairs}
    for tar in (tar for source, _ in pairs for tar in source.tars):
        if tar.parent.resolve() in folders:
            raise ConversionError(f"{tar.parent} is the folder of the source tars; choose another --out")


def described(out: Path) -> dict[str, Any] | None:
    """dataset.json of a folder; None where there is none. Raises ConversionError where it is not of a set."""
    path = out / "dataset.json"
    if not path.exists():
        return None
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} cannot be read ({error}); choose another --out") from None
    if not isinstance(info, dict) or not str(info.get("created_by", "")).startswith("fiber"):
        raise ConversionError(f"{path} is not of `fiber shards`; choose another --out")
    return info


def same(before: dict[str, Any], plan: dict[str, Any]) -> bool:
    """Whether two plans are of the same command; the source may have changed."""
    return {**before, "source": None} == {**plan, "source": None}


def changed(before: dict[str, Any], plan: dict[str, Any]) -> bool:
    """Whether the source is known to be another: plans of older versions do not have its digest."""
    return None not in (before.get("source"), plan.get("source")) and before["source"] != plan["source"]


def clear(out: Path) -> None:
    """Removes the set in `out`, or what there is of one. Raises ConversionError, and removes nothing, where it has
    tars of something else."""
    tars = removable(out)
    for path in tars:
        path.unlink()
    for name in ("index.json", "index.npz", "drops.jsonl", RECORDS, "dataset.json"):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / PARTIAL, ignore_errors=True)


def removable(out: Path) -> list[Path]:
    """The tars in a folder, all of which this package wrote (of a set in place: links). Raises ConversionError."""
    own, info = _moved(out), described(out)
    if info is not None:
        made = info.get("provenance")
        in_place = isinstance(made, dict) and made.get("in_place")
        own |= {name for name in _indexed(out) if not in_place or (out / name).is_symlink()}
    tars = sorted(out.glob("*.tar"))
    if other := [path.name for path in tars if path.name not in own]:
        raise ConversionError(
            f"{out} holds tars of something else ({other[0]}), which --overwrite never removes; choose another --out"
        )
    return tars


def _indexed(out: Path) -> set[str]:
    try:
        return {str(shard["name"]) for shard in json.loads((out / "index.json").read_text())["shards"]}
    except (OSError, ValueError, LookupError, TypeError):
        return set()


def _moved(out: Path) -> set[str]:
    """Shards that a conversion which broke off at its end had moved to their places already."""
    try:
        name = json.loads((out / PARTIAL / "plan.json").read_text())["name"]
    except (OSError, ValueError, LookupError, TypeError):
        return set()
    shard = re.compile(re.escape(str(name)) + r"-\d{6,}\.tar")
    return {path.name for path in out.glob("*.tar") if shard.fullmatch(path.name)}


def other_splits(out: Path, written: Iterable[str], overwrite: bool) -> list[Path]:
    """The sets in `out` of splits that are not written now; with `overwrite` they are to be removed.

    A val of another division has images that are in the new train. Raises ConversionError without `overwrite`, or
    where one cannot be removed.
    """
    rest = [out / split for split in NAMES if split not in written and (out / split / "dataset.json").exists()]
    for folder in rest:
        if not overwrite:
            raise ConversionError(
                f"{folder} is a set of an earlier command, and this one does not write it: both may have the same "
                "images; choose another --out, or pass --overwrite, which removes it"
            )
        removable(folder)
    return rest


def remove(folder: Path) -> None:
    """Removes a set, and its folder if nothing else lies there."""
    clear(folder)
    if not any(folder.iterdir()):
        folder.rmdir()
    print(f"removed {folder}: a split of an earlier command, which this one does not write")
