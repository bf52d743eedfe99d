"""Speed and memory of a run, for its log."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fiber import distributed

FlopsPerSample = Callable[[Mapping[str, Any]], float]
"""Useful forward FLOP of one sample of a batch."""

PEAK_TFLOPS = {
    "GB200": 2500.0, "B300": 2250.0, "B200": 2250.0, "GH200": 989.0, "H200": 989.0, "H800": 989.0, "H20": 148.0,
    "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "A100": 312.0, "A800": 312.0, "A40": 150.0, "A30": 165.0,
    "A10G": 70.0, "A10": 125.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0, "RTX 6000 Ada": 364.0, "RTX A6000": 155.0,
    "RTX 5090": 209.0, "RTX 4090": 165.0, "RTX 3090": 71.0, "V100": 125.0, "T4": 65.0,
}  # fmt: skip
"""Dense half-precision peak (TFLOP/s, fp32 accumulation) of a card by words of its name, from the vendor's data
sheets."""


class SpeedMeter:
    """Speed and memory since the last reading; evaluation and saving are outside.

    `flops_per_sample`: useful forward FLOP of one sample of a batch, or None where they are not counted.
    """

    def __init__(self, micro_batch: int, global_batch: int, flops_per_sample: FlopsPerSample | None = None) -> None:
        self.micro_batch, self.global_batch, self.flops_per_sample = micro_batch, global_batch, flops_per_sample
        self._steps, self._data, self._compute, self._flops = 0, 0.0, 0.0, 0.0
        self._mark = time.perf_counter()

    def begin(self) -> None:
        """A step begins: the wait for data is measured from here."""
        self._mark = time.perf_counter()

    def fetched(self, micro_batches: Sequence[dict[str, Any]]) -> None:
        """The data is here: computing is measured from here."""
        now = time.perf_counter()
        self._data += now - self._mark
        self._mark = now
        if self.flops_per_sample is not None:  # a backward costs two forwards
            self._flops += 3 * self.micro_batch * sum(map(self.flops_per_sample, micro_batches))

    def end(self) -> None:
        """The step is done."""
        self._compute += time.perf_counter() - self._mark
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Seconds per step (data, compute), pairs per second over all ranks, peak memory of this rank in GiB; where
        the cost of a sample is known, useful TFLOP/s of this rank, and "mfu", their share of the card's peak."""
        data, compute, flops = (total / self._steps for total in (self._data, self._compute, self._flops))
        self._steps, self._data, self._compute, self._flops = 0, 0.0, 0.0, 0.0
        pairs = self.global_batch / (data + compute)
        metrics = {"seconds/step": data + compute, "seconds/data": data, "seconds/compute": compute}
        metrics |= {"pairs_per_second": pairs, "memory/peak_gib": peak_memory() / 2**30}
        if self.flops_per_sample is not None:
            achieved = flops / (data + compute)
            metrics["tflops"] = achieved / 1e12
            peak = peak_flops(distributed.device())
            if peak is not None:
                metrics["mfu"] = achieved / peak
        return metrics


def peak_memory() -> int:
    """Bytes: the most that torch held on the card, or the most resident memory of the process on the CPU."""
    if distributed.device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(device: torch.device) -> float | None:
    """Vendor's dense half-precision peak of a CUDA card in FLOP/s; None for a card not listed and for the CPU."""
    if device.type != "cuda":
        return None
    peak = card_peak(torch.cuda.get_device_name(device))
    return None if peak is None else peak * 1e12


def card_peak(name: str) -> float | None:
    """TFLOP/s of a card by the name that its driver gives ("NVIDIA L40S"); None for a card not listed. The words of
    a listed name must stand in `name` as whole words, and the longest such name counts: an L40S is no L40."""
    words = re.sub(r"(?<=[A-Z0-9])-(?=[A-Z0-9])", " ", name).split()
    fitting = [card for card in PEAK_TFLOPS if set(card.split()) <= set(words)]
    return PEAK_TFLOPS[max(fitting, key=len)] if fitting else None
