"""Files of tensors: reading one that may be damaged, and writing one that others can read."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fiber.errors import WeightsError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the host. Raises WeightsError naming the file where it cannot be
    read, is cut short or no such file, and naming the tensor that holds numbers that are not finite."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path} is damaged, or no file of safetensors: {error!s:.200}") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: {name} holds numbers that are not finite; these weights are broken")
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file of contiguous host tensors that share no memory. Like any new file it may be read by
    whom the umask allows: safetensors would let only its owner read it. Raises SafetensorError, OSError."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    os.chmod(path, mode)
