"""Shared fixtures. Recorded reference data lives outside the repository; tests that need it skip without it."""

import os
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the recorded reference tensors (`parity/`) and real annotation slices (`real/`)."""
    path = Path(os.environ.get("FIBER_SHARED", REPO.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"reference data not found at {path}; set FIBER_SHARED to its folder")
    return path
