"""A loader worker that cannot begin, or cannot hand over a batch, ends, so that nobody waits for it."""

import mmap
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from fiber.data import workers
from fiber.data.workers import begin, start_worker
from fiber.errors import one_line


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.full((4,), number)


def test_a_batch_that_cannot_be_handed_over_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)  # the forked worker has it, too
    loader = DataLoader(
        Rows(), batch_size=None, num_workers=1, worker_init_fn=partial(start_worker, turns=3, begun=bytearray()),
        multiprocessing_context="fork", timeout=60,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid") as caught:
        list(loader)
    assert "/dev/shm" in str(one_line(caught.value))


@pytest.mark.parametrize("hanging", [0, 1])
def test_a_worker_that_hangs_in_its_fork_is_replaced(
    hanging: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Real forks that never come back in the child, as Python 3.11 has them: the first, as many as `hanging`."""
    counted = tmp_path / "forks"
    counted.touch()

    def hang() -> None:
        if on:
            with counted.open("a") as file:
                file.write("x")
            if counted.stat().st_size <= hanging:
                time.sleep(300)

    on, before = [True], set(multiprocessing.active_children())  # of other tests in this process
    os.register_at_fork(after_in_child=hang)
    monkeypatch.setattr(workers, "BEGIN_S", 1.0)
    begun = mmap.mmap(-1, 2)
    loader = DataLoader(
        Rows(), batch_size=None, num_workers=2, worker_init_fn=partial(start_worker, turns=3, begun=begun),
        multiprocessing_context="fork", timeout=60,
    )  # fmt: skip
    try:
        batches = begin(loader, begun)
        assert [int(row[0]) for row in batches] == [0, 1, 2]
    finally:
        on.clear()  # of forks to come
    del batches
    assert set(multiprocessing.active_children()) <= before
    assert counted.stat().st_size == 2 * (1 + (hanging > 0))
    assert capsys.readouterr().err.count("a loader worker did not begin in 1 s") == hanging
