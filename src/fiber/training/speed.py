"""Speed and memory of a run, for its log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fiber import distributed
from fiber.cards import peak_flops, peak_memory

FlopsPerSample = Callable[[torch.Size], float]
"""Useful forward FLOP of one sample of a batch whose images have this shape. Counted when first asked."""


class SpeedMeter:
    """Speed and memory since the last reading; evaluation and saving are outside. `flops_per_sample`: None where they
    are not counted."""

    def __init__(self, micro_batch: int, global_batch: int, flops_per_sample: FlopsPerSample | None = None) -> None:
        self.micro_batch, self.global_batch, self.flops_per_sample = micro_batch, global_batch, flops_per_sample
        self._steps, self._data, self._compute, self._shapes = 0, 0.0, 0.0, list[torch.Size]()
        self._mark = time.perf_counter()

    def begin(self) -> None:
        """A step begins: the wait for data is measured from here."""
        self._mark = time.perf_counter()

    def fetched(self, micro_batches: Sequence[dict[str, Any]]) -> None:
        """The data is here: computing is measured from here."""
        now = time.perf_counter()
        self._data += now - self._mark
        self._mark = now
        if self.flops_per_sample is not None:
            self._shapes += [batch["images"].shape for batch in micro_batches]

    def end(self) -> None:
        """The step is done."""
        self._compute += time.perf_counter() - self._mark
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Seconds per step (data, compute), pairs per second over all ranks, peak memory of this rank in GiB; where
        the cost of a sample is known, useful TFLOP/s of this rank, and "mfu", their share of the card's peak."""
        steps, shapes = self._steps, self._shapes
        data, compute = self._data / steps, self._compute / steps
        self._steps, self._data, self._compute, self._shapes = 0, 0.0, 0.0, []
        pairs, device = self.global_batch / (data + compute), distributed.device()
        metrics = {"seconds/step": data + compute, "seconds/data": data, "seconds/compute": compute}
        metrics |= {"pairs_per_second": pairs, "memory/peak_gib": peak_memory(device) / 2**30}
        if self.flops_per_sample is not None:
            flops = 3 * self.micro_batch * sum(map(self.flops_per_sample, shapes))  # a backward costs two forwards
            achieved = flops / (steps * (data + compute))
            metrics["tflops"] = achieved / 1e12
            if (peak := peak_flops(device)) is not None:
                metrics["mfu"] = achieved / peak
        return metrics
