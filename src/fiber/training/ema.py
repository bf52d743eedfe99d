"""Exponential moving average of the fp32 masters, sharded as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fiber.training import zero
from fiber.training.optim import AdamW


class Ema:
    """Averaged weights a <- decay * a + (1 - decay) * w after every update, in fp32.

    Each rank averages its own slices, so an update costs no communication and works at every ZeRO stage. Whole
    values by name exist only inside `averaged`, through the same functions that read the trained weights.
    """

    def __init__(self, decay: float, engine: zero.Engine, optimizer: AdamW) -> None:
        self.decay, self._engine = decay, engine
        self._masters = [tensor.data for tensor in zero.masters(engine, optimizer)]
        self._average = [tensor.clone() for tensor in self._masters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        torch._foreach_lerp_(self._average, self._masters, 1 - self.decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the engine computes with, and zero.read_weights yields, the averaged weights. Collective."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def restart(self) -> None:
        """Make the average equal to the weights as they are now (after a checkpoint's average was loaded)."""
        for average, master in zip(self._average, self._masters, strict=True):
            average.copy_(master)

    @torch.no_grad()
    def _swap(self) -> None:
        for average, master in zip(self._average, self._masters, strict=True):
            kept = master.clone()
            master.copy_(average)
            average.copy_(kept)
        zero.refresh(self._engine)
