"""A world of one DeepSpeed process inside the test process."""

import os
from collections.abc import Iterator

import pytest

from fiber import distributed


@pytest.fixture(scope="session")
def alone() -> Iterator[None]:
    """torch.distributed through DeepSpeed with one rank, as an entrypoint without a launcher starts it."""
    before = dict(os.environ)
    os.environ["DS_ACCELERATOR"] = "cpu"
    distributed.initialize(60.0)
    yield
    distributed.shutdown()
    os.environ.clear()
    os.environ.update(before)
