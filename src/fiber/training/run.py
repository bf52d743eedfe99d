"""How a run goes, the same for every task of both stages: open the data, build the module, train, export,
evaluate. A job from its first to its last call is one story: these lines stay together."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fiber import distributed
from fiber.config.loading import to_yaml
from fiber.countdown import Countdown
from fiber.data.loader import make_loader
from fiber.data.order import MixedStream, Source
from fiber.data.shards import ShardSet
from fiber.data.text import load_tokenizer
from fiber.errors import ConfigError, Interrupted, WeightsError
from fiber.training import loop, zero
from fiber.training.checkpoint import Checkpoints, check_shapes, collect
from fiber.training.ema import Ema
from fiber.training.folder import RunLock, begin_folder, write_whole
from fiber.training.random_state import seed_all
from fiber.training.task import Figures, Task, TaskModule
from fiber.training.tracking import Tracker, about, keep_before
from fiber.training.watchdog import Watchdog
from fiber.weights.export import write_run_export
from fiber.weights.export_config import read_config
from fiber.weights.hub import export_folder
from fiber.weights.pretrained import load_pretrained_towers


def open_shards(path: str) -> ShardSet:
    """A shard set; where the index has to be built, one rank builds it."""
    opened = ShardSet(path) if distributed.is_main() else None
    distributed.barrier()
    return opened or ShardSet(path)


def open_tokenizer(config: Any) -> PreTrainedTokenizerFast:
    """The run's tokenizer; without one, that of the model it starts from. Raises ConfigError where there is none."""
    if (given := config.tokenizer or config.init_from) is None:
        raise ConfigError("tokenizer: give a folder or a hub name, or a model to start from (init_from=)")
    try:
        return load_tokenizer(export_folder(given) if Path(given).is_dir() else given)
    except ValueError as error:
        with suppress(ValueError):
            if (own := Path(config.output) / "export").is_dir():  # a finished run needs nothing else
                return load_tokenizer(own)
        raise ConfigError(f"tokenizer: {error}") from None


def check_vocabulary(config: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises ConfigError where the tokenizer has not as many ids as the model that the run begins from."""
    if config.init_from is None or (Path(config.output) / "checkpoints" / "latest").exists():
        return
    try:
        trained = read_config(export_folder(config.init_from)).vocab_size
    except WeightsError as error:
        raise ConfigError(f"init_from: {error}") from None
    if trained != len(tokenizer):
        raise ConfigError(
            f"tokenizer: {config.tokenizer} has {len(tokenizer)} ids, the model of init_from {trained}; "
            "leave tokenizer out: the model has its own"
        )


OPTIONAL_SECTIONS = ("pretrain", "finetune", "caption")
"""Sections of a configuration that only some tasks read, see `Task.sections`."""


@dataclass(frozen=True)
class Job:
    """One run of a task, as its configuration has it. All methods are collective."""

    config: Any
    task: Task
    watchdog: Watchdog
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def open(cls, config: Any, task: Task, watchdog: Watchdog, given: Collection[str] = ()) -> Job:
        """Checks what the configuration alone cannot know: that the task reads what is `given` (sections of the file
        or the command line) and the data, and the tokenizer. Raises ConfigError."""
        for section in OPTIONAL_SECTIONS:
            plain = getattr(config, section, None) == getattr(type(config), section, None)  # as written into a run
            if section in given and section not in task.sections and not plain:
                raise ConfigError(f"{section}: task {task.name} does not read this section; leave it out")
        for section, sources in (("data.train", config.data.train), ("eval.data", config.eval.data)):
            for i, source in enumerate(sources):
                if source.field not in task.fields:
                    wanted = " or ".join(task.fields)
                    raise ConfigError(f"{section}.{i}.field: task {task.name} reads {wanted}, not {source.field}")
        tokenizer = open_tokenizer(config)
        if task.stage == "coarse":  # a detector may learn other words
            check_vocabulary(config, tokenizer)
        return cls(config, task, watchdog, tokenizer)

    def open_stream(self) -> MixedStream:
        """The training order over `data.train`; says on one rank what an epoch leaves out. Raises ShardError."""
        config, per = self.config, self.task.per(self.config)
        stream = MixedStream(
            [Source(open_shards(s.path), s.field, s.weight, per, s.sampling) for s in config.data.train],
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

    def build(self) -> TaskModule:
        """The task's module with the run's initial weights, not yet started from others."""
        return self.task.build_module(self.config, self.tokenizer)

    def start(self, module: TaskModule, stream: MixedStream) -> None:
        """Put the weights that the run starts from into `module`, and what training needs besides; says on one rank
        what was loaded. A run that has a checkpoint brings its own. Raises WeightsError, ConfigError, ShardError."""
        config, reports = self.config, {}
        if self.task.prepare is not None:
            self.task.prepare(module, config, self.tokenizer, [source.shards for source in stream.sources])
        begun = (Path(config.output) / "checkpoints" / "latest").exists()
        if config.init_from is not None and not begun:
            reports[f"weights of {config.init_from}"] = self.task.start_from(module, config.init_from, self.tokenizer)
        elif not begun:
            towers = {"image": config.model.image.pretrained, "text": config.model.text.pretrained}
            loaded = load_pretrained_towers(module.model.backbone, self.tokenizer, **towers)
            reports = {f"{tower} tower from {towers[tower]}": report for tower, report in loaded.items()}
        if distributed.is_main():
            for origin, report in reports.items():
                print(f"{origin}\n{report.table()}")

    def batches(self, stream: MixedStream, step: int) -> Iterator[loop.Batch]:
        """This rank's micro-batches from a step on."""
        config = self.config
        return make_loader(
            stream,
            self.task.build_sample(config, self.tokenizer),
            self.task.collate,
            micro_batch=config.train.micro_batch,
            accumulation=config.train.accumulation,
            rank=distributed.rank(),
            world=distributed.world_size(),
            workers=config.data.workers,
            start_step=step,
            max_fault_share=config.data.max_fault_share,
        )

    def evaluate(self, module: TaskModule, step: int | None) -> Figures:
        """Figures on the sets of `eval.data`; step None rehearses on a batch of each."""
        sets = [(open_shards(source.path), source.field) for source in self.config.eval.data]
        beat = partial(self.watchdog.beat, step or 0, "evaluation")
        return self.task.evaluate(self.config, self.tokenizer, module, sets, step, beat)

    def rehearse(self, module: TaskModule) -> None:
        """Try the evaluation, and whether it has the figure that `train.best` chooses by; with `eval.at_start` a new
        run makes it whole and keeps its figures. Raises ConfigError."""
        folder, best = Path(self.config.output), self.config.train.best
        whole = self.config.eval.at_start and not (folder / "checkpoints" / "latest").exists()
        figures = self.evaluate(module, 0 if whole else None)
        if whole and distributed.is_main():
            write_whole(folder / "start.json", json.dumps(figures, indent=2))
        # The accuracy of one kind of answers or labels need not be among those of a batch: "accuracy" is enough.
        every = re.sub(r"(^|/)accuracy_[^/]*$", r"\1accuracy", best or "")
        if best is not None and best not in figures and every not in figures:
            raise ConfigError(
                f"train.best: the evaluation has no figure {best!r}; it has {', '.join(figures) or 'none'}"
            )

    def _plain(self, engine: zero.Engine) -> TaskModule:
        return zero.plain_module(engine, self.build, self.config.train.precision)

    def restore(self, module: TaskModule) -> int:
        """The weights to evaluate -> their step: the run's own, or, before it has any, those of `init_from` (0)."""
        if self.config.init_from is None or (Path(self.config.output) / "checkpoints").exists():
            return restore(module, self.config.output)
        self.task.start_from(module, self.config.init_from, self.tokenizer)
        return 0

    def evaluate_only(self) -> None:
        """`--mode eval`: print the figures of the run's weights as one line of JSON."""
        module = self.build()
        step = self.restore(module)
        figures = self.evaluate(zero.as_in_training(module, self.config.train.precision), step)
        if distributed.is_main():
            print(json.dumps({"step": step} | figures))

    def export(self, module: TaskModule, weights: Mapping[str, Tensor], figures: Figures, steps: int) -> None:
        """Write RUN/export. weights: of the module after `steps`, by name. Rank 0 only."""
        export = self.task.export(self.config, self.tokenizer, module, weights)
        write_run_export(self.config, export, figures, self.task.headline, steps)

    def train(self, module: TaskModule, stream: MixedStream) -> None:
        """Train to the end of `config.train`, going on from the newest checkpoint of `config.output`; then export
        the weights (averaged ones if there are any), those of the best evaluation where `train.best` chooses, and
        write `summary.json`. Raises Interrupted where a signal ended it before, and ConfigError."""
        config, folder = self.config, Path(self.config.output)
        lock = RunLock(folder) if distributed.is_main() else None
        seed_all(config.seed)
        self.watchdog.beat(0, "preparation")
        told = about(config, self.task, module, stream)
        counted = distributed.is_main() and distributed.device().type == "cuda"  # it would take a CPU some 5 s
        flops = self.task.flops(config, module) if counted else None  # for the log, which has one rank
        engine, optimizer = zero.build_engine(module, config.train, config.optim)
        ema = Ema(config.train.ema, engine, optimizer) if config.train.ema else None
        checkpoints = Checkpoints(folder, config.train.keep, to_yaml(config))
        start, latest = 0, checkpoints.latest()
        state: dict[str, Any] = {}
        if latest is not None:
            start, state = checkpoints.load(latest, engine, optimizer, ema)
            stream.resume(state["stream"])
        evaluated = state.get("record", {}).get("evaluated", 0) >= start
        if distributed.is_main():
            checkpoints.clear_after(start)
            keep_before(folder / "faults.jsonl", start)
            if start < config.train.steps:  # a finished run that is to be longer is not finished
                (folder / "summary.json").unlink(missing_ok=True)
            begin_folder(config, folder, latest)
        run = loop.Run(
            engine=engine,
            optimizer=optimizer,
            train=config.train,
            optim=config.optim,
            folder=folder,
            checkpoints=checkpoints,
            tracker=Tracker(folder, config, told, start=start, evaluated=evaluated),
            watchdog=self.watchdog,
            stream_state=stream.state,
            ema=ema,
            evaluate=lambda engine, step: self.evaluate(self._plain(engine), step),
            evaluate_every=config.eval.every,
            rehearse=lambda engine: self.rehearse(self._plain(engine)),
            lost=None if lock is None else lock.lost,
            flops_per_sample=flops,
            shown=Countdown("training", config.train.steps, "steps", done=start, show=lock is not None, leave=True),
            samples="pairs" if self.task.stage == "coarse" else "images",
        )
        _resume_counts(run, state)
        if distributed.is_main() and run.record.step is None:  # what another choice has left
            (folder / "checkpoints" / "best").unlink(missing_ok=True)
        with run.tracker.failure_known(), closing(run.shown):
            loop.train(run, self.batches(stream, start), start)
            if not run.stopped:
                _finish(run, partial(self.export, module))
        run.tracker.close()
        if run.stopped:
            _interrupted(run)
        if lock is not None:
            lock.close()


def _resume_counts(run: loop.Run, state: Mapping[str, Any]) -> None:
    """What a checkpoint's `state` says of faults and of the evaluations so far."""
    run.counters.update(state.get("counters", {}))
    if "record" not in state:
        return
    run.figures = state["record"].get("newest", {})
    run.record.resume(state["record"])
    if run.record.step is not None and not run.checkpoints.has(run.record.step):
        if distributed.is_main():
            print(f"the best checkpoint, of step {run.record.step}, is not here: choosing again", file=sys.stderr)
        run.record.forget_best()
        run.figures = {}


def _interrupted(run: loop.Run) -> None:
    """Raises Interrupted on all ranks, or ConfigError where the run's folder has gone."""
    if distributed.broadcast_object(run.lost is not None and run.lost()):
        raise ConfigError(
            f"output: {run.folder} was removed or replaced while the run was writing to it; step {run.done} has been "
            "saved there again, the rest is gone. The same command goes on"
        )
    raise Interrupted(
        f"stopped by a signal, saved at step {run.done} of {run.train.steps}: not finished, the same command goes on"
    )


def _finish(run: loop.Run, export: Callable[[Mapping[str, Tensor], Figures, int], None]) -> None:
    """Export and summary of a run that came to its end; evaluates if these weights have not been."""
    best = run.record
    summary: dict[str, Any] = {"steps": run.done}
    if best.step is None and (best.evaluated != run.done or not run.figures):
        loop.evaluate(run, run.done)
    if best.step is None:
        figures = run.figures
        with loop.averaged(run.ema):
            weights = collect(zero.read_weights(run.engine))
    else:
        figures = best.figures
        path = run.checkpoints.best() if distributed.is_main() else None
        weights = {} if path is None else run.checkpoints.weights(path)
        summary["best"] = {"figure": best.figure, "step": best.step}
    if distributed.is_main():
        export(weights, figures, run.done if best.step is None else best.step)
        write_whole(run.folder / "summary.json", json.dumps(summary | {"eval": figures}, indent=2))
    distributed.barrier()


def restore(module: TaskModule, output: str) -> int:
    """Put the weights of a run's best checkpoint, or of the newest where it chooses none, into `module` (averaged
    ones where the run keeps them) -> its step. Raises ConfigError without one."""
    checkpoints = Checkpoints(output, keep=1)
    path = checkpoints.best() or checkpoints.latest()
    if path is None:
        raise ConfigError(f"output: {output} has no checkpoint to evaluate")
    weights = checkpoints.weights(path)
    check_shapes(path, weights, module)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(weights[name])
    return int(path.name.removeprefix("step_"))
