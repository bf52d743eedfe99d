"""What a process that loads data is: the memory it assembles batches in, and how it answers signals."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing import active_children, queues
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

LARGE = 1 << 20  # bytes from which a tensor of a batch gets a block of its own in the training process ...
KEPT = 16  # ... which remembers so many of them; who holds more batches than that gets fresh memory
BEGIN_S = 30.0  # a worker that has not begun by then never will; it takes milliseconds


class SharedBuffers:
    """A loader worker's memory for batches, shared with the training process and used again and again.

    Fresh shared memory costs a page fault every 4 KB, at 384 pixels a third of decoding. There are `turns` sets of
    buffers, one more than batches of this worker can be under way; the training process copies a batch out of its
    buffers when it takes it (`OwnCopies`), before this worker is asked for another.
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
    """Like torch.empty, for a collate to fill: in a loader worker it lies in shared memory. Return it in the batch as
    it is, or in a dict, list or tuple there; it is valid for this batch alone."""
    return torch.empty(shape, dtype=dtype) if _buffers is None else _buffers.take(shape, dtype)


def stack(values: list[Tensor]) -> Tensor:
    """Like torch.stack, into `empty`."""
    return torch.stack(values, out=empty((len(values), *values[0].shape), values[0].dtype))


def begin(loader: DataLoader, begun: Any) -> Iterator[Any]:
    """The loader's batches, once all its workers have `begun` (a byte of each). In Python 3.11 a forked process hangs
    where a thread of C++ was entering Python (its lock is renewed too late): all are then killed and forked again."""
    for _ in range(2):
        begun[:] = bytes(len(begun))
        others, end = set(active_children()), time.monotonic() + BEGIN_S
        batches, alive = iter(loader), True
        forked = set(active_children()) - others
        while not all(begun[:]) and (alive := all(child.is_alive() for child in forked)) and time.monotonic() < end:
            time.sleep(0.002)
        if all(begun[:]) or not alive:  # the loader itself tells of a worker that has died
            return batches
        print(f"a loader worker did not begin in {BEGIN_S:g} s: all are started again", file=sys.stderr)
        del batches  # first, so that the loader does not take their end for a fault
        for child in forked:
            child.kill()
    return iter(loader)


def start_worker(number: int, turns: int, begun: Any) -> None:
    """Makes this process a loader worker with `turns` sets of buffers, and says so in `begun`, at its `number`. It
    outlasts the signals of a pre-emption, which the training process answers by saving, and ends when that process
    tells it to or dies."""
    global _buffers
    begun[number : number + 1] = b"\1"
    _buffers = SharedBuffers(turns)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    setattr(queues.Queue, "_on_queue_feeder_error", staticmethod(_end))  # noqa: B010 (mypy knows no such name)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_await_termination, args=(os.getppid(),), daemon=True).start()


def _end(error: Exception, _: Any) -> None:
    """A batch cannot be handed over (no shared memory is left, say). The queue would drop it, and the training
    process wait for it for ever; the end of a worker it sees."""
    os.write(2, f"loader worker: {error}\n".encode())
    os._exit(1)


def _await_termination(parent: int) -> None:
    """Obeys SIGTERM from the training process alone: a scheduler sends it to every process of a job."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def next_batch() -> None:
    """In a loader worker, begins the next batch; elsewhere does nothing."""
    if _buffers is not None:
        _buffers.next_batch()


class OwnCopies:
    """The training process's copies of batches. A large tensor lies in a block of memory that is used again once
    nothing refers to the tensor any more: malloc would place it on the heap, between small things that live longer
    (at 384 pixels the heap grew by 400 MB, most of it holes), and memory mapped for every batch costs page faults."""

    def __init__(self) -> None:
        self.blocks: list[tuple[np.ndarray, weakref.ref]] = []  # with the view of each that a tensor holds, or held

    def copy(self, value: Any) -> Any:
        """The batch with all that is shared copied: the worker fills that again once the next batch is asked for."""
        if isinstance(value, Tensor):
            return self._empty_like(value).copy_(value) if value.is_shared() else value
        if isinstance(value, dict):
            return {key: self.copy(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.copy(item) for item in value)
        return value

    def _empty_like(self, value: Tensor) -> Tensor:
        size = value.nbytes
        if size < LARGE:
            return torch.empty_like(value)
        fitting = [i for i, (block, view) in enumerate(self.blocks) if view() is None and len(block) >= size]
        if fitting:
            block, _ = self.blocks.pop(min(fitting, key=lambda i: len(self.blocks[i][0])))
        else:
            self.blocks = [(block, view) for block, view in self.blocks if view() is not None]  # others are too small
            block = np.empty(size, dtype=np.uint8)
        view = block[:size]
        self.blocks = [*self.blocks, (block, weakref.ref(view))][-KEPT:]
        return torch.from_numpy(view).view(value.dtype).view(value.shape)
