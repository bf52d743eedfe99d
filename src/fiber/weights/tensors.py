"""Files of tensors: reading one that may be damaged or hostile, and writing one that others can read."""

import argparse
import os
import pathlib
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fiber.errors import KnownError, WeightsError

_NUMPY_SCALAR: Any = type(np.float64(0)).__reduce__(np.float64(0))[0]  # the function that rebuilds a NumPy scalar


class _Inert:
    """Stands for a class whose instances are not used (keys of Lightning's callback states)."""


_LIGHTNING = "pytorch_lightning.callbacks."
SAFE_GLOBALS: list[Callable | tuple[Callable, str]] = [
    argparse.Namespace,
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (dict, "sacred.config.custom_containers.ReadOnlyDict"),
    (list, "sacred.config.custom_containers.ReadOnlyList"),
    (OrderedDict, "yacs.config.CfgNode"),
    (_Inert, f"{_LIGHTNING}model_checkpoint.ModelCheckpoint"),
    (_Inert, f"{_LIGHTNING}lr_monitor.LearningRateMonitor"),
    (_Inert, f"{_LIGHTNING}early_stopping.EarlyStopping"),
    (pathlib.PurePosixPath, "pathlib.PosixPath"),
    np.dtype,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
]
"""Everything but tensors and plain containers that a checkpoint may name. Classes of libraries we do not have are
read as plain containers; nothing here runs code of the file."""


def reason(error: BaseException) -> str:
    """What an error says, in a line; its class alone where it says nothing."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")[:300]


@contextmanager
def refusing(path: str | Path, what: str) -> Iterator[None]:
    """Around work on a file that nobody has checked: whatever libraries make of its contents is a WeightsError with
    the path, `what` and the reason; one that is raised inside names the file. Errors of the disk and of missing
    packages stay as they are."""
    try:
        yield
    except WeightsError as error:
        raise error if str(path) in str(error) else WeightsError(f"{path}: {error}") from None
    except (KnownError, OSError, ImportError):
        raise
    except Exception as error:
        raise WeightsError(f"{path} {what} ({reason(error)})") from error


def load_safely(path: str | Path) -> Any:
    """`torch.load` that never runs code of the file. Raises WeightsError naming a class that is not allowed."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no file {path}")
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = (line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line)
        why = next(named, reason(error)).split(" was not an allowed")[0].split("WeightsUnpickler error: ")[-1].strip()
        raise WeightsError(
            f"{path} refused: it holds more than tensors and plain settings and could run code when read ({why}). "
            "If you trust it, load it where it was made and save its state dict alone"
        ) from None
    except Exception as error:  # each kind of damage has its own class
        raise WeightsError(f"{path} is not a readable checkpoint: {reason(error)}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the host. Raises WeightsError naming the file where it cannot be
    read, is cut short or no such file, and naming the tensor that holds numbers that are not finite."""
    try:
        tensors = load_file(path)
    except Exception as error:  # each kind of damage has its own class
        raise WeightsError(f"{path} is damaged, or no file of safetensors: {reason(error)}") from None
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
