"""What a process that loads data is: the memory it assembles batches in, and how it answers signals."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
from typing import Any

import torch
from torch import Tensor


class SharedBuffers:
    """A loader worker's memory for batches, shared with the training process and used again and again.

    Fresh shared memory costs a page fault every 4 KB, at 384 pixels a third of decoding. There are `turns` sets of
    buffers, one more than batches of this worker can be under way; the training process copies a batch out of its
    buffers when it takes it, before this worker is asked for another.
    """

    def __init__(self, turns: int):
        self.turns: list[list[Tensor]] = [[] for _ in range(turns)]
        self.next_batch()

    def next_batch(self) -> None:
        """Begins a batch in the buffers of the oldest one."""
        self.turns.append(self.turns.pop(0))
        self.taken = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor that is the next buffer of this batch, enlarged where it is too small."""
        buffers, size = self.turns[-1], math.prod(shape) * dtype.itemsize
        if self.taken == len(buffers):
            buffers.append(torch.empty(0, dtype=torch.uint8))
        if len(buffers[self.taken]) < size:
            buffers[self.taken] = torch.empty(size, dtype=torch.uint8).share_memory_()
        buffer = buffers[self.taken][:size]
        self.taken += 1
        return buffer.view(dtype).view(shape)


_buffers: SharedBuffers | None = None  # set in loader workers


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Like torch.empty, for a collate to fill: in a loader worker it lies in shared memory.

    Return it in the batch as it is, or in a dict, list or tuple there; it is valid for this batch alone.
    """
    return torch.empty(shape, dtype=dtype) if _buffers is None else _buffers.take(shape, dtype)


def stack(values: list[Tensor]) -> Tensor:
    """Like torch.stack, into `empty`."""
    return torch.stack(values, out=empty((len(values), *values[0].shape), values[0].dtype))


def start_worker(number: int, turns: int) -> None:
    """Makes this process a loader worker with `turns` sets of buffers (a DataLoader passes its `number`).

    It outlasts the signals of a pre-emption, which the training process answers by saving, and ends when that process
    tells it to or dies.
    """
    global _buffers
    _buffers = SharedBuffers(turns)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_await_termination, args=(os.getppid(),), daemon=True).start()


def _await_termination(parent: int) -> None:
    """Obeys SIGTERM from the training process alone: a scheduler sends it to every process of a job."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def next_batch() -> None:
    """In a loader worker, begins the next batch; elsewhere does nothing."""
    if _buffers is not None:
        _buffers.next_batch()


def copy_shared(value: Any) -> Any:
    """The batch in memory of its own: the worker uses the buffers again once the next batch is asked for."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_shared() else value
    if isinstance(value, dict):
        return {key: copy_shared(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copy_shared(item) for item in value)
    return value
