"""Samples into batches, where every field has one shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fiber.data.workers import stack


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Tensors and arrays of one shape are stacked, numbers and booleans become a tensor (B,), the rest a list.

    Raises ValueError naming the field where shapes differ: such a task brings its own collate.
    """
    batch: dict[str, Any] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if isinstance(values[0], np.ndarray):
            values = [torch.from_numpy(value) for value in values]
        if isinstance(values[0], Tensor):
            shapes = {tuple(value.shape) for value in values}
            if len(shapes) > 1:
                raise ValueError(f"{name} has the shapes {sorted(shapes)} in one batch: write a collate that pads it")
            batch[name] = stack(values)
        elif isinstance(values[0], (bool, int, float)):
            batch[name] = torch.tensor(values)
        else:
            batch[name] = values
    return batch
