"""Ranks, gathers, row exchange and the watchdog. Everything runs unchanged on one process without torch.distributed.

Letters: W ranks, B rows a rank holds, K rows a rank asks for. "Global row" g = rank * B + row, the order in which
gathers concatenate.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

GRACE_S = 10.0
"""How much later than the watchdog a collective fails by itself: the watchdog says more."""

# ---------------------------------------------------------------------------------------------- ranks


def is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0..W-1; 0 without torch.distributed."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if is_initialized() else 1


def is_main() -> bool:
    """True on the one rank that prints, logs and writes shared files."""
    return rank() == 0


def device() -> torch.device:
    """The device of this rank: its CUDA card (the launcher's LOCAL_RANK), else the CPU."""
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def initialize(timeout_s: float) -> torch.device:
    """Start torch.distributed through DeepSpeed and return this rank's device.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT as every launcher sets them; without a launcher
    it makes a world of one. `timeout_s` is the watchdog's; the collectives of the default group fail GRACE_S later.
    """
    here = device()
    if here.type == "cuda":
        torch.cuda.set_device(here)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(_free_port()))
    import deepspeed

    # On CPU, DeepSpeed compiles a shared-memory collective when it starts (a minute, and a killed build locks out
    # every later run); training does not need it.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    # It calls collectives by names that torch 2.14 deprecates, with a warning on every rank.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)
    backend = "nccl" if here.type == "cuda" else "gloo"
    deepspeed.init_distributed(
        dist_backend=backend, timeout=timedelta(seconds=timeout_s + GRACE_S), verbose=False, auto_mpi_discovery=False
    )
    return here


def set_timeouts(timeout_s: float) -> None:
    """As in `initialize`, for every group that exists: DeepSpeed's own ignores the default's."""
    set_timeout = getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)  # public since torch 2.15
    for group in list(dist.distributed_c10d._world.pg_map):
        set_timeout(timedelta(seconds=timeout_s + GRACE_S), group)


def shutdown() -> None:
    if is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---------------------------------------------------------------------------------------------- gathers


def all_gather(x: Tensor) -> Tensor:
    """(B, ...) on every rank -> (W*B, ...) in rank order, without gradient. B must be equal on all ranks."""
    x = x.detach()
    if world_size() == 1:
        return x
    out = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
    # torch >= 2.14 deprecates the old name, with a warning on every rank.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(out, x.contiguous())
    return out


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        return all_gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)  # a reduce-scatter would do; gloo has none, and these are small features
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def all_gather_with_grad(x: Tensor) -> Tensor:
    """As `all_gather`; the backward pass returns to each owner the sum over ranks of the gradients of its rows."""
    return x if world_size() == 1 else _GatherWithGradient.apply(x)


class _ExchangeRows(torch.autograd.Function):
    """Ship requested rows from owners to askers; ship their gradients back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        rows, me = x.shape[0], rank()
        wanted = all_gather(index).view(world_size(), -1)  # (W, K): what each rank asks for
        owner = torch.div(wanted, rows, rounding_mode="floor")
        asked = owner == me  # (W, K)
        ctx.rows = rows
        ctx.sent = wanted[asked] - me * rows  # my rows to ship, grouped by asker
        # Rows arrive grouped by owner; a stable sort of my own requests by owner is that very order.
        ctx.order = torch.sort(owner[me], stable=True).indices
        counts = torch.stack([asked.sum(1), torch.bincount(owner[me], minlength=world_size())]).tolist()
        ctx.send_counts, ctx.receive_counts = counts
        arrived = x.new_empty((index.shape[0], *x.shape[1:]))
        dist.all_to_all_single(arrived, x[ctx.sent], ctx.receive_counts, ctx.send_counts)
        out = torch.empty_like(arrived)
        out[ctx.order] = arrived
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        returned = grad.new_empty((len(ctx.sent), *grad.shape[1:]))
        dist.all_to_all_single(returned, grad[ctx.order], ctx.send_counts, ctx.receive_counts)
        own = grad.new_zeros((ctx.rows, *grad.shape[1:]))
        return own.index_add_(0, ctx.sent, returned), None


def exchange_rows(x: Tensor, index: Tensor) -> Tensor:
    """x (B, ...) on every rank, index (K,) int64 global rows -> (K, ...), differentiable.

    Only the requested rows travel. B and K must be equal on all ranks; every rank must call. The gradient of a row
    requested several times, by any ranks, is their sum and reaches its owner. Raises IndexError on a global row
    outside 0..W*B-1.
    """
    total = world_size() * x.shape[0]
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < total):
        raise IndexError(f"exchange_rows: rows {index.tolist()} are not all in 0..{total - 1}")
    return x[index] if world_size() == 1 else _ExchangeRows.apply(x, index)


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over ranks of a detached tensor, same shape; `x` itself is left alone."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def all_reduce_mean(x: Tensor) -> Tensor:
    """The mean over ranks of a detached floating-point tensor."""
    return all_reduce_sum(x) / world_size()


def all_reduce_max(x: Tensor) -> Tensor:
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def gather_objects(value: Any) -> list:
    """One picklable value a rank -> the list of all, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any, source: int = 0) -> Any:
    """The value that rank `source` passed, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


# ---------------------------------------------------------------------------------------------- watchdog


_LOST_PEER = (
    "onnection closed by peer",
    "onnection reset by peer",
    "onnection refused",
    "Timed out waiting",
    "Broken pipe",
)


class Watchdog:
    """Ends this rank when it makes no progress for `timeout_s`, and says which rank the job was waiting for.

    A thread of every rank writes a pulse (counter, step, phase) to the launcher's key-value store every
    `period_s`. When the loop has not called `beat` for `timeout_s`, the thread compares two readings of all
    pulses: ranks without one are stopped or dead; if all have one, those furthest behind are named. It prints
    that, dumps the stacks, kills pulseless ranks of its own host (a stopped process ignores the launcher's
    SIGTERM) and exits with status 1; the launcher then ends the job. `faulthandler` is armed a little later, for
    the case that no Python thread can run any more.
    """

    def __init__(self, timeout_s: float, period_s: float = 0.5) -> None:
        self.timeout_s, self.period_s = timeout_s, period_s
        self._step, self._phase, self._count = 0, "starting", 0
        self._last = time.monotonic()
        self._members = gather_objects((socket.gethostname(), os.getpid()))
        self._stop, self._suspicion = threading.Event(), threading.Event()
        self._store = _connect_store()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        self.beat(0, "starting")

    def beat(self, step: int, phase: str) -> None:
        """Progress: the loop enters `phase` ("data", "compute", "evaluation", ...) of `step`."""
        self._step, self._phase, self._last = step, phase, time.monotonic()
        faulthandler.dump_traceback_later(self.timeout_s + 2 * GRACE_S, exit=True)

    def suspect(self) -> None:
        """Look at the other ranks' pulses now and report those without (on SIGTERM: a launcher sends it when a
        rank has died)."""
        self._suspicion.set()

    def close(self) -> None:
        self._phase = "finished"
        self._pulse()
        self._stop.set()
        faulthandler.cancel_dump_traceback_later()
        self._thread.join(timeout=5.0)

    def end(self, why: str, only_if_missing: bool = False) -> None:
        """Print `why`, the state of the other ranks and all stacks, and end this process with status 1.

        Ranks of this host without a pulse are killed: a stopped process would keep the launcher waiting. With
        `only_if_missing` nothing happens unless some rank has no pulse. Takes a few seconds.
        """
        lines, pids = self._diagnose()
        # A rank that has closed meanwhile needs nobody any more: others may have left, and the store with rank 0.
        if only_if_missing and (self._stop.is_set() or not any("no pulse" in line for line in lines)):
            return
        me = f"rank {rank()} on {socket.gethostname()}, in {self._phase} of step {self._step}"
        print("\n".join([f"\nwatchdog: {why} ({me})", *(f"watchdog: {line}" for line in lines)]), file=sys.stderr)
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        os._exit(1)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Where a collective fails because another rank has gone, name that rank and end this one with status 1."""
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, dist.DistError) or any(sign in str(error) for sign in _LOST_PEER)
            if not lost:
                raise
            self.end(f"a collective failed: {str(error).splitlines()[0][:200]}")

    def _watch(self) -> None:
        while not self._stop.wait(self.period_s):
            self._pulse()
            if self._suspicion.is_set():
                self._suspicion.clear()
                self.end("asked to end", only_if_missing=True)
            if time.monotonic() - self._last > self.timeout_s:
                self.end(f"no progress for {self.timeout_s:g} s")

    def _pulse(self) -> None:
        self._count += 1
        if self._store is not None:
            with suppress(RuntimeError):  # the store is gone with rank 0; the time-out still ends this rank
                self._store.set(f"pulse/{rank()}", json.dumps([self._count, self._step, self._phase]))

    def _diagnose(self) -> tuple[list[str], list[int]]:
        """-> (one line a suspicious rank, pids of those on this host that have no pulse)."""
        if self._store is None:
            return [], []
        readings: list[list] = []
        reader = threading.Thread(target=self._read_twice, args=(readings,), daemon=True)
        reader.start()
        for _ in range(8):
            reader.join(timeout=self.period_s)
            self._pulse()  # this may be the thread that does so otherwise
        who = [f"rank {r} on {host} (pid {pid})" for r, (host, pid) in enumerate(self._members)]
        if len(readings) == 2:
            before, pulses = readings
            changed = [old != new for old, new in zip(before, pulses, strict=True)]
            silent = [r for r, p in enumerate(pulses) if p is None or not (changed[r] or p[2] == "finished")]
        else:  # the store does not answer: it lives with rank 0
            pulses, silent = [None] * len(who), [0]
        if silent:
            last = [f" since {p[2]} of step {p[1]}" if p else "" for p in pulses]
            here = socket.gethostname()
            pids = [pid for r, (host, pid) in enumerate(self._members) if r in silent and host == here]
            return [f"{who[r]} has no pulse{last[r]}" for r in silent], pids
        behind = min((step, phase != "data") for _, step, phase in pulses)
        waiting = [r for r, (_, step, phase) in enumerate(pulses) if (step, phase != "data") == behind]
        return [f"{who[r]} is alive in {pulses[r][2]} of step {pulses[r][1]}" for r in waiting], []

    def _read_twice(self, readings: list[list]) -> None:
        keys = [f"pulse/{r}" for r in range(world_size())]
        with suppress(RuntimeError):
            store = _connect_store()  # waiting for an answer, a connection is closed to everybody else
            for wait in (0.0, 3 * self.period_s):
                time.sleep(wait)
                readings.append([json.loads(store.get(k)) if store.check([k]) else None for k in keys])


def _connect_store() -> Any:
    """A connection of our own to the launcher's store (the group's is busy while a collective waits on it)."""
    if world_size() == 1:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
