"""What is known of cards: how they are to compute, and how fast they could."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PEAK_TFLOPS = {
    "GB200": 2500.0, "B300": 2250.0, "B200": 2250.0, "GH200": 989.0, "H200": 989.0, "H800": 989.0, "H20": 148.0,
    "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "A100": 312.0, "A800": 312.0, "A40": 150.0, "A30": 165.0,
    "A10G": 70.0, "A10": 125.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0, "RTX 6000 Ada": 364.0, "RTX A6000": 155.0,
    "RTX 5090": 209.0, "RTX 4090": 165.0, "RTX 3090": 71.0, "V100": 125.0, "T4": 65.0,
}  # fmt: skip
"""Dense half-precision peak (TFLOP/s, fp32 accumulation) of a card by words of its name, from the vendor's data
sheets."""


def choose_kernels(device: torch.device, exact: bool = False) -> None:
    """How a card computes, said before it does; nothing on the CPU.

    Attention without cuDNN, which on cards since Hopper comes first and plans for a second at each new shape. Matrix
    products and convolutions of fp32 in TF32 (10 bits of mantissa), as evaluations and users want them; `exact`: in
    fp32, as parity with the release does.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.set_float32_matmul_precision("highest" if exact else "high")
        torch.backends.cudnn.allow_tf32 = not exact


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products of fp32 in fp32 inside, whatever `choose_kernels` said: for scores that order something."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch held on the card, or the most resident memory of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
