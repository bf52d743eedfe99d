"""The yardstick of benchmarks."""

import torch

from benchmark_ceiling import matmul_ceiling


def test_the_ceiling_is_a_plausible_speed() -> None:
    assert 1e8 < matmul_ceiling(torch.device("cpu"), torch.float32, repeats=2) < 1e14
