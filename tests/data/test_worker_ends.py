"""A loader worker that cannot hand over a batch ends, so that nobody waits for it."""

from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from fiber.data.workers import start_worker
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
        Rows(), batch_size=None, num_workers=1, worker_init_fn=partial(start_worker, turns=3),
        multiprocessing_context="fork", timeout=60,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid") as caught:
        list(loader)
    assert "/dev/shm" in str(one_line(caught.value))
