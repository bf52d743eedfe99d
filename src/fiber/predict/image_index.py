"""Contrastive features of a folder's images, kept beside them and reused."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fiber.predict.sources import ImageError, expand

INDEX_FILE = ".fiber-index.npz"


@dataclass(frozen=True)
class ImageIndex:
    """Features (N,H) fp32 of the images `paths` (relative) under `folder`; how many of them were `encoded` now
    rather than read from the file; what could not be read, with the reason."""

    folder: Path
    paths: list[str]
    features: Tensor
    encoded: int
    unreadable: list[str]


def build_index(folder: Path, file: Path, model: str, encode: Callable[[Path], Tensor]) -> ImageIndex:
    """Index of `folder`, read from `file` where that holds unchanged images (same size and time of change) of the
    same model, and written back. `model` is a `fingerprint`, `encode` gives an image's feature (H,).

    An index cut short (older versions wrote it in place) is built again. Raises ImageError where the folder has no
    readable image, and where `file` is something else than an index or cannot be written.
    """
    known = _read(file, model)
    stamps, features, unreadable, encoded = {}, {}, [], 0
    for path in expand([folder]):
        name, stat = path.relative_to(folder).as_posix(), path.stat()
        stamp = f"{stat.st_size}:{stat.st_mtime_ns}"
        if name in known and known[name][0] == stamp:
            features[name] = known[name][1]
        else:
            try:
                features[name] = encode(path).numpy()
            except ImageError as error:
                unreadable.append(str(error))
                continue
            encoded += 1
        stamps[name] = stamp
    if not features:
        raise ImageError(f"no readable image in {folder}: {unreadable[0]}")
    stacked = np.stack(list(features.values()))
    if encoded or len(known) != len(features):
        _write(file, stacked, {"model": model, "stamps": stamps})
    return ImageIndex(folder, list(features), torch.from_numpy(stacked), encoded, unreadable)


def fingerprint(model: nn.Module, image_size: int) -> str:
    """A name for the weights and the size that contrastive image features depend on."""
    digest = hashlib.sha256(str(image_size).encode())
    for name, tensor in model.state_dict().items():
        if name.startswith(("heads.contrastive.image", "backbone.image")):
            digest.update(tensor.double().sum().cpu().numpy().tobytes())
    return digest.hexdigest()


def _read(file: Path, model: str) -> dict[str, tuple[str, np.ndarray]]:
    """Stamp and feature of each image in an index file; nothing if it is of another model."""
    if not file.exists():
        return {}
    if not _may_be_index(file):
        raise ImageError(f"{file}: no index of images; name another file with --index, or delete this one")
    try:
        with np.load(file, allow_pickle=False) as saved:
            facts = json.loads(str(saved["facts"]))
            if facts["model"] != model:
                return {}
            rows = zip(facts["stamps"].values(), saved["features"], strict=True)
            return dict(zip(facts["stamps"], rows, strict=True))
    except Exception as error:  # a damaged zip raises a dozen kinds
        print(f"{file}: a damaged index ({error}); it is built again", file=sys.stderr)
        return {}


def _may_be_index(file: Path) -> bool:
    """Whether `file` is ours to replace: a .npz of an index, whole or cut short, and not, say, a photograph."""
    if not file.is_file():
        return False
    with file.open("rb") as start:
        head = start.read(42)  # signature, 26 bytes that vary, the name of the first array
    return b"PK\3\4".startswith(head[:4]) and b"features.npy".startswith(head[30:])


def _write(file: Path, features: np.ndarray, facts: dict[str, Any]) -> None:
    """Aside and renamed: a kill leaves the old index or the new one."""
    aside = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        with aside.open("wb") as out:  # np.savez would add its suffix to a name without one
            np.savez(out, features=features, facts=json.dumps(facts))
        os.replace(aside, file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ImageError(f"{file}: {error.strerror}; name another file with --index") from None
