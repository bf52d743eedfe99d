"""The training loop of both stages: fetch, forward, backward, update, log, save, evaluate.

Weights are saved before they are evaluated: an evaluation that fails costs nothing but itself.
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from fiber import distributed
from fiber.errors import NonFiniteError
from fiber.training import zero
from fiber.training.ema import Ema
from fiber.training.optim import apply_schedule
from fiber.training.speed import SpeedMeter
from fiber.training.state import Batch, Run


def train(run: Run, batches: Iterable[Batch], start: int) -> None:
    """Train from step `start` to the end, until evaluations bring no gain, or until a signal (`run.stopped`).

    A task is called as `losses, report = engine(batch)`: `losses` weighted, 0-dimensional, with graph; `report`
    detached. Raises NonFiniteError on all ranks together.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, run.request_stop)
    settings, source = run.train, iter(batches)
    meter = SpeedMeter(settings.micro_batch, settings.global_batch, run.flops_per_sample)
    run.engine.train()
    run.done = start
    if start < settings.steps:
        rehearse(run)
    if run.due(start) and run.record.evaluated < start:  # a signal or a failure came before it
        evaluate(run, start)
    run.shown.restart()
    for step in range(start, start if run.exhausted else settings.steps):
        # ---- fetch
        run.watchdog.beat(step, "data")
        meter.begin()
        micro_batches = fetch(run, source, step)
        meter.fetched(micro_batches)

        # ---- forward, backward, update
        run.watchdog.beat(step, "compute")
        rates = apply_schedule(run.optimizer, step, settings.steps, run.optim, run.record.drops)
        outcome = update(run, micro_batches, step)
        if run.ema is not None and not run.optimizer.skip:
            run.ema.update()
        meter.end()

        # ---- log
        run.done = done = step + 1
        stopping, last = outcome.stop, done == settings.steps
        if done % settings.log_every == 0 or last or stopping:
            metrics = outcome.average() | rates | {"grad_norm": outcome.grad_norm} | meter.read() | run.counts()
            run.tracker.log(step, metrics)
            losses = (f"{k[5:]} {v:.3f}" for k, v in metrics.items() if k[:5] == "loss/" and k != "loss/total")
            speed = f"{metrics['pairs_per_second']:.1f} {run.samples} per second"
            run.shown.note = ", ".join([speed, "loss: " + ", ".join(losses)])
            run.stop |= distributed.is_main() and run.lost is not None and run.lost()
        run.shown.add()

        # ---- save
        due = run.due(done) and not stopping
        if done % settings.save_every == 0 or last or stopping or due:
            run.save(done)

        # ---- evaluate
        if due:
            evaluate(run, done)
        run.stopped = stopping
        if stopping or run.exhausted:
            break
    run.shown.close()
    if run.exhausted and distributed.is_main():
        since = f"no gain in {settings.best} since step {run.record.step}"
        print(f"{since}: {run.done} steps are enough", file=sys.stderr)


def averaged(ema: Ema | None) -> AbstractContextManager:
    """A context in which the engine has the averaged weights, if there is an average."""
    return nullcontext() if ema is None else ema.averaged()


def evaluate(run: Run, step: int) -> None:
    """Run the evaluation with the averaged weights if there are any, and log it as update `step` - 1, with the images
    it has left in `figures/`; then enter it in the run's record: an entered one is not run again. `run.figures` are
    then rank 0's on all ranks."""
    run.watchdog.beat(step, "evaluation")
    run.engine.eval()
    with averaged(run.ema), torch.no_grad():
        assert run.evaluate is not None  # `due` says so
        run.figures = distributed.broadcast_object(run.evaluate(run.engine, step))
    run.engine.train()
    run.record.add(step, run.figures)
    run.tracker.log(step - 1, {f"eval/{name}": value for name, value in run.figures.items()})
    run.tracker.images(step - 1, sorted((run.folder / "figures").glob(f"step_{step:06d}_*.png")))
    if distributed.is_main():
        run.checkpoints.note_evaluation(step, run.record.state() | {"newest": run.figures}, run.record.step)


def rehearse(run: Run) -> None:
    """Try the evaluation before any training: a set that cannot be read, or a figure that does not exist, ends the
    run now and not after hours. The random numbers of training stay as they are."""
    if run.rehearse is None:
        return
    run.watchdog.beat(0, "evaluation")
    run.engine.eval()
    devices = [distributed.device()] if distributed.device().type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        run.rehearse(run.engine)
    run.engine.train()


def fetch(run: Run, source: Iterator[Batch], step: int) -> list[Batch]:
    """The micro-batches of a step, on the device, with "step" set. Where the task counts the `items` that its losses
    are means over (masked tokens, say), each batch also gets "loss_normalisers": their mean over micro-batches and
    ranks, so that the loss of a step does not depend on how it is split."""
    micro_batches = [next(source) for _ in range(run.train.accumulation)]
    device = distributed.device()
    for batch in micro_batches:
        for shard, key, reason in batch.get("faults", ()):
            run.new_faults.append({"step": step, "shard": str(shard), "key": key, "reason": reason})
        for name, value in batch.items():
            if isinstance(value, Tensor):
                batch[name] = value.to(device, non_blocking=True)
        batch["step"] = step
    count = getattr(run.engine.module, "loss_normalisers", None)
    if count is not None:
        items = [count(batch) for batch in micro_batches]
        totals = torch.stack([torch.stack([number.float() for number in of.values()]) for of in items]).mean(0)
        means = distributed.all_reduce_mean(totals)
        means = means.where(means > 0, 1.0)  # of nothing: the sums are 0
        for batch in micro_batches:
            batch["loss_normalisers"] = dict(zip(items[0], means, strict=True))
    return micro_batches


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
    """Forward and backward of every micro-batch, one optimizer step. All ranks agree before the step whether the
    losses were finite and whether a signal came; before that, nothing waits for the device."""
    rows, finite = [], []
    for batch in micro_batches:
        losses, report = run.engine(batch)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        entries = {"loss/total": total} | {f"weighted/{name}": loss for name, loss in losses.items()} | report
        rows.append(torch.stack([value.detach().float() for value in entries.values()]))
        finite.append(torch.isfinite(total))
        run.engine.backward(total)
        if batch is not micro_batches[-1]:
            run.engine.step()
    bad_keys, stop = _agree(run, torch.stack(finite), micro_batches, step)
    norm = zero.optimizer_step(run.engine)
    _account(run, step, norm, bad_keys, micro_batches)
    return Outcome(list(entries), sum(rows[1:], rows[0]), len(micro_batches), norm, stop)


def _agree(run: Run, finite: Tensor, micro_batches: list[Batch], step: int) -> tuple[list[str], bool]:
    """From `finite` (one per micro-batch) on all ranks: whether the optimizer skips the step; -> the keys of this
    rank's samples whose loss was not finite, and whether any rank was asked to stop."""
    bad = (~finite).float()
    flags = torch.stack([bad.amax(), bad.new_full((), run.stop)])
    any_bad, stop, *here = torch.cat([distributed.all_reduce_max(flags), bad]).tolist()
    run.optimizer.skip = any_bad > 0
    keys = [key for batch, own in zip(micro_batches, here, strict=True) if own for key in batch.get("keys", [])]
    if any_bad and run.counters["skipped/nonfinite"] >= run.train.max_nonfinite:
        _raise_nonfinite("loss", step, keys)
    return keys, stop > 0


def _account(run: Run, step: int, norm: float, bad_keys: list[str], micro_batches: list[Batch]) -> None:
    """Count a skipped step, or end the run on a gradient that is not finite although the loss was."""
    if run.optimizer.skip:
        run.counters["skipped/nonfinite"] += 1
        keys = chain.from_iterable(distributed.gather_objects(bad_keys))
        if distributed.is_main():
            run.shown.say(f"step {step}: loss not finite, update skipped; samples {', '.join(keys)}")
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
