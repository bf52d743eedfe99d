"""Few-shot subsets of a detection set: a few images of every class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fiber.data.convert.writer import write_dataset
from fiber.data.records import Record
from fiber.data.shards import ShardSet
from fiber.errors import ShardError


def choose(classes: Sequence[Collection[int]], shots: int, seed: int) -> list[int]:
    """Which images make a subset of `shots` images per class, in ascending order.

    classes: of each image, the category ids in it. The images are walked in an order that `seed` draws, and one
    is kept if any of its classes has been met in fewer than `shots` images (the release's rule, which walks by id).
    So every class has `shots` images or all that there are, often more by the side of rarer ones, and with one seed
    fewer shots are a subset of more.
    """
    met: Counter[int] = Counter()
    kept = []
    for image in np.random.default_rng(seed).permutation(len(classes)).tolist():
        own = set(classes[image])
        if any(met[one] < shots for one in own):
            kept.append(image)
        met.update(own)
    return sorted(kept)


def labels(record: Record) -> set[int]:
    """The category ids that an image shows; crowd regions do not count, they are nothing to learn from."""
    return {box["category"] for box in record.get("boxes", ()) if "category" in box and not box.get("crowd")}


def write_few_shot(path: str | Path, out: str | Path, shots: int, seed: int) -> dict[str, Any]:
    """Write a subset of the detection set at `path` as shards of their own -> their dataset.json, and under
    "images" the number of images by class name, classes without any included. Its split is SPLIT_SHOTS_SEED.
    Raises ShardError."""
    shards = ShardSet(path)
    if not shards.categories or not shards.count("boxes"):
        raise ShardError(f"{path}: no images with labelled boxes, nothing to choose by")
    shown = [labels(shards.record(i)) for i in range(len(shards))]
    kept = choose(shown, shots, seed)
    if not kept:
        raise ShardError(f"{path}: none of its {len(shards)} images has an object to choose it by")
    origin = {"from": shards.name, "split": shards.info.get("split", ""), "fingerprint": shards.fingerprint}
    info = write_dataset(
        (shards.read(i) for i in kept),
        out,
        name=shards.name,
        split=f"{origin['split'] or 'train'}_{shots}_{seed}",
        provenance={"few_shot": {"shots": shots, "seed": seed} | origin, "source": shards.info.get("provenance", "")},
        licence=shards.info.get("licence", ""),
        categories=shards.categories,
        answers=shards.answers,
    )
    counts = Counter(one for i in kept for one in shown[i])
    return info | {"images": {entry["name"]: counts[entry["id"]] for entry in shards.categories}}
