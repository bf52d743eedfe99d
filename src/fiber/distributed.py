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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

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
    it makes a world of one. `timeout_s` bounds every collective of the default group.
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
    backend = "nccl" if here.type == "cuda" else "gloo"
    deepspeed.init_distributed(
        dist_backend=backend, timeout=timedelta(seconds=timeout_s), verbose=False, auto_mpi_discovery=False
    )
    return here


def set_timeouts(timeout_s: float) -> None:
    """Bound the collectives of every group that exists, DeepSpeed's own included (it ignores the default's)."""
    set_timeout = getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)  # public since torch 2.15
    for group in list(dist.distributed_c10d._world.pg_map):
        set_timeout(timedelta(seconds=timeout_s), group)


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
    dist.all_gather_into_tensor(out, x.contiguous())
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

    A thread of every rank writes a pulse (counter, step, phase, host, pid) to the launcher's key-value store every
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
        self._stop, self._suspicion = threading.Event(), threading.Event()
        self._store = _connect_store()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        self.beat(0, "starting")

    def beat(self, step: int, phase: str) -> None:
        """Progress: the loop enters `phase` ("data", "compute", "evaluation", ...) of `step`."""
        self._step, self._phase, self._last = step, phase, time.monotonic()
        faulthandler.dump_traceback_later(self.timeout_s + 15.0, exit=True)

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

    def report(self, why: str) -> list[int]:
        """Print `why` and what the pulses say; -> the pids on this host without a pulse. Takes a few seconds."""
        lines, pids = self._diagnose()
        me = f"rank {rank()} on {socket.gethostname()}, {self._phase} of step {self._step}"
        print("\n".join([f"watchdog: {why} ({me})", *(f"watchdog: {line}" for line in lines)]), file=sys.stderr)
        sys.stderr.flush()
        return pids

    def report_missing(self, why: str) -> bool:
        """As `report`, but silent, and False, if every rank has a pulse."""
        missing = any("no pulse" in line for line in self._diagnose()[0])
        if missing:
            self.report(why)
        return missing

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Where a collective fails because another rank has gone, name that rank and end this one with status 1."""
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, dist.DistError) or any(sign in str(error) for sign in _LOST_PEER)
            if not lost:
                raise
            self.report(f"a collective failed: {str(error).splitlines()[0][:200]}")
            raise SystemExit(1) from None

    def _watch(self) -> None:
        while not self._stop.wait(self.period_s):
            self._pulse()
            if self._suspicion.is_set():
                self._suspicion.clear()
                if self.report_missing("asked to end"):
                    os._exit(1)  # no collective can end any more
            if time.monotonic() - self._last > self.timeout_s:
                pids = self.report(f"no progress for {self.timeout_s:g} s")
                faulthandler.dump_traceback(all_threads=True)
                for pid in pids:
                    with suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
                os._exit(1)

    def _pulse(self) -> None:
        self._count += 1
        pulse = {"count": self._count, "step": self._step, "phase": self._phase}
        pulse |= {"host": socket.gethostname(), "pid": os.getpid()}
        if self._store is not None:
            with suppress(RuntimeError):  # the store is gone with rank 0; the time-out still ends this rank
                self._store.set(f"pulse/{rank()}", json.dumps(pulse))

    def _diagnose(self) -> tuple[list[str], list[int]]:
        """-> (one line a suspicious rank, pids on this host without a pulse)."""
        if self._store is None:
            return [], []
        readings: list[list] = []
        reader = threading.Thread(target=self._read_twice, args=(readings,), daemon=True)
        reader.start()
        reader.join(timeout=6 * self.period_s)
        if len(readings) < 2:
            return [f"rank 0 has no pulse: the store at {os.environ['MASTER_ADDR']} does not answer"], []
        lines, pids = [], []
        for r, (old, new) in enumerate(zip(*readings, strict=True)):
            if new is None:
                lines.append(f"rank {r} has no pulse: it never came to the loop")
            elif old == new and r != rank() and new["phase"] != "finished":
                where = f"{new['phase']} of step {new['step']}"
                lines.append(f"rank {r} on {new['host']} (pid {new['pid']}) has no pulse since {where}")
                pids += [new["pid"]] if new["host"] == socket.gethostname() else []
        if not lines:
            pulses = readings[1]
            behind = min((p["step"], p["phase"] != "data") for p in pulses)
            for r, p in enumerate(pulses):
                if (p["step"], p["phase"] != "data") == behind:
                    lines.append(f"rank {r} on {p['host']} is alive in {p['phase']} of step {p['step']}")
        return lines, pids

    def _read_twice(self, readings: list[list]) -> None:
        with suppress(RuntimeError):
            for wait in (0.0, 3 * self.period_s):
                time.sleep(wait)
                keys = [f"pulse/{r}" for r in range(world_size())]
                readings.append([json.loads(self._store.get(k)) if self._store.check([k]) else None for k in keys])


def _connect_store() -> Any:
    """A connection of our own to the launcher's store (the group's is busy while a collective waits on it)."""
    if world_size() == 1:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
