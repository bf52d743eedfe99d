"""What the machine reaches at best: the yardstick of benchmarks where the data sheet names none."""

import time
from collections.abc import Callable

import torch
from torch import Tensor


def matmul_ceiling(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """FLOP/s that one large square matrix product reaches here and now: the best of `repeats` after a warm-up."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = [_timed(lambda: a @ b, device) for _ in range(repeats + 1)]
    return 2 * side**3 / min(seconds[1:])


def _timed(function: Callable[[], Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
