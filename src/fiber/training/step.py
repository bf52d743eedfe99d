"""One update: forward and backward of every micro-batch, one step of the optimizer, and what becomes of a loss or
gradient that is not finite."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from tqdm import tqdm

from fiber import distributed
from fiber.errors import NonFiniteError
from fiber.training import zero
from fiber.training.state import Batch, Run


@dataclass
class Outcome:
    """What a step computed: summed over its micro-batches on this rank, `names` and `sums` in the same order."""

    names: list[str]
    sums: Tensor
    micro_batches: int
    grad_norm: float
    stop: bool

    def average(self) -> dict[str, float]:
        """Mean over micro-batches and ranks. Collective."""
        means = distributed.all_reduce_mean(self.sums / self.micro_batches).tolist()
        return dict(zip(self.names, means, strict=True))


def update(run: Run, micro_batches: list[Batch], step: int) -> Outcome:
    """Forward and backward of every micro-batch, one optimizer step. All ranks agree before each backward whether
    the losses are finite and whether a signal came."""
    run.optimizer.skip, stop, norm = False, False, 0.0
    bad_keys: list[str] = []
    sums: Tensor | None = None
    for batch in micro_batches:
        losses, report = run.engine(batch)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        entries = {"loss/total": total} | {f"weighted/{name}": loss for name, loss in losses.items()} | report
        values = torch.stack([value.detach().float() for value in entries.values()])
        sums = values if sums is None else sums + values

        finite = bool(torch.isfinite(total))
        flags = torch.tensor([float(not finite), float(run.stop)], device=total.device)
        any_bad, any_stop = (flag > 0 for flag in distributed.all_reduce_max(flags).tolist())
        stop |= any_stop
        if any_bad:
            bad_keys += batch.get("keys", []) if not finite else []
            run.optimizer.skip = True
            if run.counters["skipped/nonfinite"] >= run.train.max_nonfinite:
                _raise_nonfinite("loss", step, bad_keys)
        run.engine.backward(total)
        if batch is micro_batches[-1]:
            norm = zero.optimizer_step(run.engine)
        else:
            run.engine.step()
    _account(run, step, norm, bad_keys, micro_batches)
    assert sums is not None  # there is at least one micro-batch
    return Outcome(list(entries), sums, len(micro_batches), norm, stop)


def _account(run: Run, step: int, norm: float, bad_keys: list[str], micro_batches: list[Batch]) -> None:
    """Count a skipped step, or end the run on a gradient that is not finite although the loss was."""
    if run.optimizer.skip:
        run.counters["skipped/nonfinite"] += 1
        keys = chain.from_iterable(distributed.gather_objects(bad_keys))
        if distributed.is_main():
            tqdm.write(f"step {step}: loss not finite, update skipped; samples {', '.join(keys)}", file=sys.stderr)
    elif not math.isfinite(norm):
        run.counters["skipped/overflow"] += 1
        # fp16 finds its loss scale by overflowing; elsewhere it is a fault like a non-finite loss, and in fp32 the
        # weights are lost with it.
        tolerated = {"fp16": math.inf, "bf16": run.train.max_nonfinite, "fp32": 0}[run.train.precision]
        if run.counters["skipped/overflow"] > tolerated:
            _raise_nonfinite("gradient", step, [key for batch in micro_batches for key in batch.get("keys", [])])


def _raise_nonfinite(what: str, step: int, keys: list[str]) -> None:
    everywhere = list(chain.from_iterable(distributed.gather_objects(keys)))
    raise NonFiniteError(
        f"step {step}: the {what} is not finite; samples {', '.join(everywhere) or 'unknown'} "
        "(train.max_nonfinite skips such steps; the last checkpoint is from before it)"
    )
