"""`train.compile`: the blocks of a model through torch.compile, each by itself, in training only.

Norms, activations, residuals and the copies of windows then run in a few kernels in place of dozens. Blocks of one
kind share their graphs. Image blocks of stage 2, whose images differ in size, take graphs that hold for every size:
which sides windows divide decides between four of a kind (`tests/tasks/test_compiled.py`). Evaluation stays as it is:
its last batches would be compiled for themselves. Random numbers are drawn in another order than without.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn

from fiber.backbone.fusion import FusionBackbone
from fiber.backbone.image import SwinBlock
from fiber.backbone.text import RobertaLayer
from fiber.errors import ConfigError
from fiber.fine.dyhead import DynamicBlock

UNITS: tuple[tuple[type[nn.Module], str], ...] = (
    (SwinBlock, "forward"),
    (RobertaLayer, "forward"),
    (FusionBackbone, "run_pair"),
    (DynamicBlock, "forward"),
)
"""What is compiled: the unfused blocks and layers, the fused pairs, the blocks of the detection head."""

MOST_GRAPHS = 256
"""Of a kind; torch's own limit of 8 is below the number of blocks, which differ in stage, shift and drop rate."""


def compile_blocks(model: nn.Module, config: Any, backend: str = "inductor") -> None:
    """Compile the blocks of a `CoarseModel` or `FiberDetector` in place where `train.compile` says so; a copy of the
    model has them compiled, too. `backend`: of torch.compile. Raises ConfigError for settings that exclude it."""
    if not config.train.compile:
        return
    if config.train.zero_stage == 3:
        raise ConfigError("train.compile: needs train.zero_stage 2 or less; stage 3 brings weights in between blocks")
    if config.model.checkpointing == "selective":
        raise ConfigError("train.compile: goes with model.checkpointing true or false; it keeps what it needs itself")
    import torch._dynamo as dynamo  # slow to import

    dynamo.config.cache_size_limit = MOST_GRAPHS
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    options: dict[str, Any] = {"fullgraph": True, "dynamic": model_takes_any_size(model), "backend": backend}
    for kind, name in UNITS:
        plain = getattr(kind, name)
        method = _in_training(plain, torch.compile(plain, **options))
        for unit in _of_kind(model, kind):
            setattr(unit, name, MethodType(method, unit))


def model_takes_any_size(model: nn.Module) -> bool:
    """Whether its images differ in size."""
    return any(tower.padded for tower in _of_kind(model, SwinBlock))


def _of_kind(model: nn.Module, kind: type[nn.Module]) -> Iterator[Any]:
    return (part for part in model.modules() if isinstance(part, kind))


def _in_training(plain: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: nn.Module, *arguments: Any) -> Any:
        return (compiled if self.training else plain)(self, *arguments)

    return method
