"""Ranks, gathers and row exchange. Everything runs unchanged on one process without torch.distributed.

Letters: W ranks, B rows per rank holds, K rows per rank asks for. "Global row" g = rank * B + row, the order in which
gathers concatenate.
"""

from __future__ import annotations

import os
import sys
import warnings
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

GRACE_S = 10.0
"""How much later than the watchdog a collective fails by itself: the watchdog says more."""

# ---------------------------------------------------------------------------------------------- ranks


def is_initialized() -> bool:
    """Whether torch.distributed runs in this process."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0..W-1; 0 without torch.distributed."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """W; 1 without torch.distributed."""
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
    import deepspeed

    # On CPU, DeepSpeed compiles a shared-memory collective when it starts (a minute, and a killed build locks out
    # every later run); training does not need it.
    setattr(sys.modules["deepspeed.comm.torch"], "build_shm_op", lambda: None)  # noqa: B010 (mypy knows no such name)
    # It calls collectives by names that torch 2.14 deprecates, with a warning on every rank.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)
    if "RANK" not in os.environ:  # a world of one listens where the system has a place
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        os.environ.update(alone)
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
    """Leave the group of ranks, if there is one."""
    if is_initialized():
        dist.destroy_process_group()


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
    """As `all_gather`, (B, ...) -> (W*B, ...); the backward pass returns to each owner (B, ...) the sum over ranks of
    the gradients of its rows."""
    return x if world_size() == 1 else _GatherWithGradient.apply(x)


class Exchange:
    """Which rows travel where, for all tensors of a state: `index` (K,) int64, the global rows that this rank asks
    for, `rows` B that each rank holds. Every rank must call. Between ranks the host waits for the device, once.
    Raises IndexError on a global row outside 0..W*B-1, where the host knows the index."""

    def __init__(self, index: Tensor, rows: int) -> None:
        self.index = index
        if world_size() == 1 and index.device.type != "cpu":
            return
        requests, local = all_gather(index).view(world_size(), -1).cpu(), rank()  # (W, K)
        if requests.numel() and not 0 <= int(requests.min()) <= int(requests.max()) < world_size() * rows:
            raise IndexError(f"rows {requests.tolist()} are not all in 0..{world_size() * rows - 1}")
        owner = torch.div(requests, rows, rounding_mode="floor")  # (W, K)
        from_here = owner == local
        sent = requests[from_here] - local * rows  # local rows to ship, grouped by asker
        # Rows arrive grouped by owner; a stable sort of the local requests by owner is that very order.
        order = torch.sort(owner[local], stable=True).indices
        self.send_counts = from_here.sum(1).tolist()
        self.receive_counts = torch.bincount(owner[local], minlength=world_size()).tolist()
        self.sent, self.order = (x.to(index.device, non_blocking=True) for x in (sent, order))


class _ExchangeRows(torch.autograd.Function):
    """Ship requested rows from their owners to the ranks that ask: x (B, ...) -> (K, ...); ship the gradients back,
    (K, ...) -> (B, ...), see `exchange_rows`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Exchange) -> Tensor:
        ctx.rows, ctx.plan = len(x), plan
        received = x.new_empty((len(plan.index), *x.shape[1:]))
        dist.all_to_all_single(received, x[plan.sent], plan.receive_counts, plan.send_counts)
        out = torch.empty_like(received)
        out[plan.order] = received
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        plan = ctx.plan
        returned = grad.new_empty((len(plan.sent), *grad.shape[1:]))
        dist.all_to_all_single(returned, grad[plan.order], plan.send_counts, plan.receive_counts)
        total = grad.new_zeros((ctx.rows, *grad.shape[1:]))
        return total.index_add_(0, plan.sent, returned), None


def exchange_rows(x: Tensor, plan: Exchange) -> Tensor:
    """x (B, ...) on every rank -> the rows (K, ...) that the plan asks for, differentiable.

    Only the requested rows travel. B and K must be equal on all ranks; every rank must call. The gradient of a row
    requested several times, by any ranks, is their sum and reaches its owner.
    """
    return x[plan.index] if world_size() == 1 else _ExchangeRows.apply(x, plan)


def all_reduce_sum(x: Tensor) -> Tensor:
    """x (...) of one shape on all ranks -> (...), the sum over ranks, without gradient; `x` itself is left alone."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def all_reduce_mean(x: Tensor) -> Tensor:
    """As `all_reduce_sum`, the mean over ranks; x floating-point."""
    return all_reduce_sum(x) / world_size()


def all_reduce_max(x: Tensor) -> Tensor:
    """As `all_reduce_sum`, the largest of each element over ranks."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def gather_objects(value: T) -> list[T]:
    """One picklable value per rank -> the list of all W, in rank order, on every rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast_object(value: T | None, source: int = 0) -> T:
    """The picklable value that rank `source` passed, on every rank; the others may pass None."""
    box: list[Any] = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=source)
    return box[0]


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()
