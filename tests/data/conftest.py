"""Small shard sets that the data tests share."""

from pathlib import Path

import pytest
from shard_sets import CAPTIONS, write_shards

from fiber.data.shards import ShardSet


@pytest.fixture
def uneven(tmp_path: Path) -> ShardSet:
    """Twelve images with one caption each in shards of 5, 5 and 2."""
    write_shards(tmp_path / "uneven", (5, 5, 2), lambda _: 1)
    return ShardSet(tmp_path / "uneven")


@pytest.fixture
def many(tmp_path: Path) -> ShardSet:
    """Sixty images with one to three captions each (120 in all, 20 a shard) in six shards."""
    write_shards(tmp_path / "many", (10,) * 6, lambda i: CAPTIONS[i % 10])
    return ShardSet(tmp_path / "many")
