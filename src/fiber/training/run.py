"""What both entrypoints share: start, resume, train, close, and end with one line where the trouble is known."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fiber import distributed
from fiber.backbone.fusion import FusionBackbone
from fiber.config.base import Command, exit_with, load_config, parse_command, save_config, to_dict
from fiber.data.loader import Collate, MakeSample, make_loader
from fiber.data.order import MixedStream, Per, Source
from fiber.data.shards import ShardSet
from fiber.errors import ConfigError, DataFaultError, ShardError, WeightsError
from fiber.training import loop, zero
from fiber.training.checkpoint import Checkpoints, check_shapes, collect, seed_all
from fiber.training.ema import Ema
from fiber.training.flops import FlopsPerSample
from fiber.training.tracking import Tracker, keep_before
from fiber.training.watchdog import Watchdog
from fiber.weights.export import inherited_sizes
from fiber.weights.pretrained import load_pretrained_towers

EXPECTED = (ConfigError, ShardError, WeightsError, DataFaultError, loop.NonFiniteError)
"""Errors whose message says all that a user needs: one line, no traceback."""


def main(kind: type, check: Callable[[Any, int | None], None], stage: Callable[[Command, Watchdog], None]) -> None:
    """Run `stage` as a process of a distributed job, after parsing and checking its configuration, see `guarded`."""
    command = parse_command(kind, check, inherit=inherited_sizes)
    guarded(command.config.train.hang_timeout_s, partial(stage, command))


def guarded(hang_timeout_s: float, work: Callable[[Watchdog], None]) -> None:
    """Join the other ranks and do `work`, guarded against dead and hung ones. Exit status: 0 done or stopped by a
    signal, 2 a known error, 1 anything else."""
    distributed.initialize(hang_timeout_s)
    watchdog = Watchdog(hang_timeout_s)
    try:
        with watchdog.guard():
            work(watchdog)
    except EXPECTED as error:
        watchdog.beat(0, "ending")
        exit_with(error)
    watchdog.close()
    distributed.shutdown()


def open_shards(path: str) -> ShardSet:
    """A shard set; where the index has to be built, one rank builds it."""
    if distributed.is_main():
        ShardSet(path)
    distributed.barrier()
    return ShardSet(path)


def open_stream(config: Any, per: Per = "annotation") -> MixedStream:
    """The training order over `config.data.train`, whose sources are walked `per` annotation or image; says on one
    rank what an epoch leaves out."""
    stream = MixedStream(
        [Source(open_shards(s.path), s.field, s.weight, per) for s in config.data.train],
        seed=config.seed,
        global_batch=config.train.global_batch,
        window_shards=config.data.window_shards,
    )
    if distributed.is_main() and not stream.weighted:
        print(
            f"training data: {stream.epoch_length} samples, {stream.steps_per_epoch} steps per epoch, "
            f"{stream.dropped} left over in each",
            file=sys.stderr,
        )
    return stream


def batches(
    config: Any, stream: MixedStream, make_sample: MakeSample, collate: Collate
) -> Callable[[int], Iterator[loop.Batch]]:
    """step -> this rank's micro-batches from that step on, as `config.train` and `config.data` say."""
    return lambda step: make_loader(
        stream,
        make_sample,
        collate,
        micro_batch=config.train.micro_batch,
        accumulation=config.train.accumulation,
        rank=distributed.rank(),
        world=distributed.world_size(),
        workers=config.data.workers,
        start_step=step,
        max_fault_share=config.data.max_fault_share,
    )


def start_towers(config: Any, backbone: FusionBackbone, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put `model.image.pretrained` and `model.text.pretrained` into the towers of a run at its beginning, and say on
    one rank what was loaded. A run that starts from `init_from`, or has a checkpoint, brings its own towers.
    Raises WeightsError."""
    if config.init_from is not None or (Path(config.output) / "checkpoints" / "latest").exists():
        return
    towers = config.model
    reports = load_pretrained_towers(backbone, tokenizer, image=towers.image.pretrained, text=towers.text.pretrained)
    if distributed.is_main():
        for tower, report in reports.items():
            print(f"{tower} tower from {getattr(towers, tower).pretrained}\n{report.table()}")


def train(
    config: Any,
    task: nn.Module,
    stream: MixedStream,
    batches: Callable[[int], Iterator[loop.Batch]],
    evaluate: loop.Evaluate,
    export: Callable[[dict[str, Tensor], dict[str, float]], None],
    watchdog: Watchdog,
    flops_per_sample: FlopsPerSample | None = None,
) -> None:
    """Train `task` to the end of `config.train`, going on from the newest checkpoint of `config.output`.

    batches(step): this rank's micro-batches from a step on. evaluate(engine, step) -> figures, on all ranks.
    export(weights of the task by name, figures): called on rank 0 at the end, with averaged weights if there are any,
    those of the best evaluation where `train.best` chooses. flops_per_sample: forward FLOP of a sample of a batch,
    for the log.
    """
    folder, settings = Path(config.output), config.train
    seed_all(config.seed)
    watchdog.beat(0, "preparation")
    engine, optimizer = zero.build_engine(task, settings, config.optim)
    ema = Ema(settings.ema, engine, optimizer) if settings.ema else None
    checkpoints = Checkpoints(folder, settings.keep)
    start, state, latest = 0, {}, checkpoints.latest()
    if latest is not None:
        start, state = checkpoints.load(latest, engine, optimizer, ema)
        stream.resume(state["stream"])
        if distributed.is_main():
            checkpoints.set_aside_after(start)
            keep_before(folder / "faults.jsonl", start)
    if distributed.is_main():
        _describe(config, folder, latest)
    tracking = config.tracking
    tracker = Tracker(folder, to_dict(config), wandb=tracking.wandb, project=tracking.project, start=start)
    run = loop.Run(
        engine=engine,
        optimizer=optimizer,
        train=settings,
        optim=config.optim,
        folder=folder,
        checkpoints=checkpoints,
        tracker=tracker,
        watchdog=watchdog,
        stream_state=stream.state,
        ema=ema,
        evaluate=evaluate,
        evaluate_every=config.eval.every,
        flops_per_sample=flops_per_sample,
    )
    run.counters.update(state.get("counters", {}))
    if "record" in state:
        run.record.resume(state["record"])
        if run.record.step is not None and not checkpoints.has(run.record.step):
            if distributed.is_main():
                print(f"the best checkpoint, of step {run.record.step}, is not here: choosing anew", file=sys.stderr)
            run.record.forget_best()
    figures = loop.train(run, batches(start), start)
    if not run.stop:
        _finish(run, figures, export)
    tracker.close()


def _finish(run: loop.Run, figures: dict[str, float], export: Callable[..., None]) -> None:
    """Export and summary of a run that came to its end; evaluates if this process made no step."""
    summary, best = {"steps": run.done}, run.record
    if not figures and best.step is None:
        figures = loop.evaluate(run, run.done)
    if best.step is None:
        with loop.averaged(run.ema):
            weights = collect(zero.read_weights(run.engine))
    else:
        figures = best.figures
        weights = run.checkpoints.weights(run.checkpoints.best()) if distributed.is_main() else {}
        summary["best"] = {"figure": best.figure, "step": best.step}
    if distributed.is_main():
        export(weights, figures)
        (run.folder / "summary.json").write_text(json.dumps(summary | {"eval": figures}, indent=2))
    distributed.barrier()


def restore(task: nn.Module, output: str) -> int:
    """Put the weights of a run's best checkpoint, or of the newest where it chooses none, into `task` (averaged ones
    where the run keeps them) -> its step. Raises ConfigError without one."""
    checkpoints = Checkpoints(output, keep=1)
    path = checkpoints.best() or checkpoints.latest()
    if path is None:
        raise ConfigError(f"output: {output} has no checkpoint to evaluate")
    weights = checkpoints.weights(path)
    check_shapes(path, weights, task)
    with torch.no_grad():
        for name, tensor in task.state_dict().items():
            tensor.copy_(weights[name])
    return int(path.name.removeprefix("step_"))


def _describe(config: Any, folder: Path, latest: Path | None) -> None:
    """Write the resolved configuration and DeepSpeed's; say what changed since the run began."""
    folder.mkdir(parents=True, exist_ok=True)
    if latest is not None:
        print(f"going on from {latest}", file=sys.stderr)
        before = _flat(to_dict(load_config(type(config), folder / "config.yaml")))
        for key, now in _flat(to_dict(config)).items():
            if before.get(key) != now:
                print(f"  {key}: was {before.get(key)}, is {now}", file=sys.stderr)
    save_config(config, folder / "config.yaml")
    engine = zero.deepspeed_json(config.train, config.optim.clip)
    (folder / "deepspeed.json").write_text(json.dumps(engine, indent=2))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
