"""The loop on a toy task: what it computes, logs, skips and refuses, with a real engine of one rank."""

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_task import Regression, batch_of, tracker_of

from fiber.config.base import OptimConfig, TrainConfig
from fiber.errors import ConfigError, NonFiniteError
from fiber.training import loop, zero
from fiber.training.checkpoint import Checkpoints
from fiber.training.ema import Ema
from fiber.training.optim import learning_rate
from fiber.training.random_state import seed_all
from fiber.training.watchdog import Watchdog

OPTIM = OptimConfig(lr=0.01, warmup=2, clip=1.0)
pytestmark = pytest.mark.usefixtures("alone")


def start_run(folder: Path, task: Any = None, optim: OptimConfig = OPTIM, **settings: Any) -> tuple[loop.Run, int]:
    """A run in `folder`, gone on from its newest checkpoint as run.train does."""
    values = {"steps": 6, "global_batch": 4, "micro_batch": 4, "log_every": 1, "save_every": 2, "keep": 2}
    train = TrainConfig(**values | settings)
    seed_all(0)
    engine, optimizer = zero.build_engine(task or Regression(), train, optim)
    ema = Ema(train.ema, engine, optimizer) if train.ema else None
    checkpoints = Checkpoints(folder, train.keep)
    latest, start, state = checkpoints.latest(), 0, {}
    if latest is not None:
        start, state = checkpoints.load(latest, engine, optimizer, ema)
    run = loop.Run(
        engine=engine,
        optimizer=optimizer,
        train=train,
        optim=optim,
        folder=folder,
        checkpoints=checkpoints,
        tracker=tracker_of(folder, start=start),
        watchdog=Watchdog(60.0),
        stream_state=lambda step: {"step": step},
        ema=ema,
    )
    if state:
        run.record.resume(state["record"])
    return run, start


def stream(start: int, micro: int = 4, parts: int = 1) -> Iterator[dict]:
    step = start
    while True:
        whole = batch_of(step)
        for part in range(parts):
            rows = slice(part * micro, (part + 1) * micro)
            yield {name: value[rows] for name, value in whole.items()}
        step += 1


def trained(folder: Path, **settings: Any) -> list[dict]:
    """Train to the end -> metrics.jsonl."""
    run, start = start_run(folder, **settings)
    parts = run.train.accumulation
    loop.train(run, stream(start, run.train.micro_batch, parts), start)
    run.watchdog.close()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", [0, 2])
def test_losses_equal_a_hand_written_loop(stage: int, tmp_path: Path) -> None:
    lines = trained(tmp_path, zero_stage=stage)
    task, losses = Regression(), []
    groups = {True: [], False: []}
    for parameter in task.parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1].append(parameter)
    roles = {id(p): 5.0 for p in (*task.fusion["mix"].parameters(), *task.heads.parameters())}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p], "weight_decay": 0.01 if wide else 0.0, "factor": roles.get(id(p), 1.0)}
            for wide in groups
            for p in groups[wide]
        ],
        betas=(0.9, 0.98),
        eps=1e-8,
    )
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 6, OPTIM) * group["factor"]
        parts, _ = task(batch_of(step))
        total = sum(parts.values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_([p for p in task.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        losses.append(total.item())
    assert [line["loss/total"] for line in lines] == pytest.approx(losses, rel=1e-6)
    assert lines[3]["loss/total"] == pytest.approx(lines[3]["weighted/fit"] + lines[3]["weighted/size"])
    assert lines[3]["weighted/fit"] == pytest.approx(0.5 * lines[3]["loss/fit"])
    assert [line["lr/head"] for line in lines] == pytest.approx([5 * learning_rate(s, 6, OPTIM) for s in range(6)])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_accumulation_does_not_change_the_update(stage: int, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", zero_stage=stage)
    split = trained(tmp_path / "split", zero_stage=stage, micro_batch=1, accumulation=4)
    for name in ("loss/total", "grad_norm"):
        assert [line[name] for line in split] == pytest.approx([line[name] for line in whole], rel=1e-5)


class Counted(Regression):
    """Sums over rows with y > 0, divided by the step's mean number of them: the form of a masked-token loss."""

    def loss_normalisers(self, batch: dict) -> dict[str, Tensor]:
        return {"rows": (batch["y"][:, 0] > 0).sum()}

    def forward(self, batch: dict) -> tuple[dict, dict]:
        chosen = batch["y"][:, 0] > 0
        error = self.frozen(self.heads["mlm"](self.tower(batch["x"]))) - batch["y"]
        used = 0.0 * self.fusion["mix"](error.new_zeros(1, 33)).sum() + 0.0 * self.fusion.gate.sum()
        return {"fit": (error.square().sum(1) * chosen).sum() / batch["loss_normalisers"]["rows"] + used}, {}


def test_means_over_items_do_not_depend_on_the_split(tmp_path: Path) -> None:
    results = []
    for parts in (1, 4):
        run, start = start_run(tmp_path / str(parts), Counted(), micro_batch=4 // parts, accumulation=parts, steps=3)
        loop.train(run, stream(start, 4 // parts, parts), start)
        run.watchdog.close()
        lines = (tmp_path / str(parts) / "metrics.jsonl").read_text().splitlines()
        results.append([json.loads(line)["loss/total"] for line in lines])
    assert results[1] == pytest.approx(results[0], rel=1e-5)


def poisoned(start: int, bad: int) -> Iterator[dict]:
    for step, batch in enumerate(stream(start), start):
        if step == bad:
            batch["y"][2] = math.nan
        yield batch


def test_non_finite_loss_stops_with_the_samples(tmp_path: Path) -> None:
    run, start = start_run(tmp_path)
    with pytest.raises(NonFiniteError, match=r"step 3: the loss is not finite; samples s3p0r0, .*s3p0r3"):
        loop.train(run, poisoned(start, 3), start)
    run.watchdog.close()
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_000002"


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16")])
def test_non_finite_loss_is_skipped_and_counted(stage: int, precision: str, tmp_path: Path) -> None:
    run, start = start_run(tmp_path, max_nonfinite=1, zero_stage=stage, precision=precision, ema=0.5)
    loop.train(run, poisoned(start, 3), start)
    run.watchdog.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss/total"] is None for line in lines] == [False, False, False, True, False, False]
    assert [line.get("skipped/nonfinite", 0) for line in lines] == [0, 0, 0, 1, 1, 1]
    assert zero.updates(run.engine, run.optimizer) == 5
    assert all(torch.isfinite(weight).all() for _, weight in zero.read_weights(run.engine))


def test_signal_saves_and_the_next_run_goes_on(tmp_path: Path) -> None:
    expected = trained(tmp_path / "whole", steps=6, ema=0.5)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    run, start = start_run(tmp_path / "stopped", steps=6, save_every=100, ema=0.5)

    def interrupted() -> Iterator[dict]:
        for step, batch in enumerate(stream(0)):
            if step == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield batch

    loop.train(run, interrupted(), start)
    run.watchdog.close()
    assert (tmp_path / "stopped" / "checkpoints" / "latest").read_text() == "step_000003"
    lines = trained(tmp_path / "stopped", steps=6, ema=0.5)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert [line["loss/total"] for line in lines] == [line["loss/total"] for line in expected]
    files = [tmp_path / name / "checkpoints" / "step_000006" / "ema.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_faults_are_counted_and_listed(tmp_path: Path) -> None:
    run, start = start_run(tmp_path, steps=3)

    def faulty() -> Iterator[dict]:
        for step, batch in enumerate(stream(0)):
            yield batch | {"faults": [("shard-0.tar", f"k{step}", "decode")] if step != 1 else []}

    loop.train(run, faulty(), start)
    run.watchdog.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["faults/decode"] for line in lines] == [1, 1, 2]
    listed = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert listed == [
        {"step": step, "shard": "shard-0.tar", "key": f"k{step}", "reason": "decode"} for step in (0, 2)
    ]


def test_evaluation_sees_the_averaged_weights(tmp_path: Path) -> None:
    run, start = start_run(tmp_path, steps=4, ema=0.5)
    run.evaluate_every = 2
    seen: dict[int, Any] = {}

    def evaluate(engine: Any, step: int) -> dict[str, float]:
        assert not engine.module.training
        seen[step] = engine.module.tower.weight.detach().clone()
        return {"figure": float(step)}

    run.evaluate = evaluate
    loop.train(run, stream(start), start)
    run.watchdog.close()
    assert run.figures == {"figure": 4.0}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["eval/figure"]) for line in lines if "eval/figure" in line] == [(1, 2.0), (3, 4.0)]
    weights = dict(zero.read_weights(run.engine))
    assert not torch.equal(seen[4], weights["tower.weight"])
    with run.ema.averaged():
        assert torch.equal(seen[4], dict(zero.read_weights(run.engine))["tower.weight"])
    assert torch.equal(dict(zero.read_weights(run.engine))["tower.weight"], weights["tower.weight"])


PLATEAU = OptimConfig(lr=0.01, warmup=0, clip=1.0, schedule="plateau", patience=1)
ACCURACY = [0.1, 0.3, 0.2, 0.3, 0.1, 0.2, 0.1, 0.9]  # of the evaluation after each update
CHOOSING = {"steps": 20, "save_every": 3, "keep": 1, "ema": 0.5, "best": "accuracy", "stop_after": 5}


def choosing(folder: Path, signal_at: int | None = None) -> tuple[loop.Run, dict[int, torch.Tensor]]:
    """A run that chooses by `ACCURACY`, stopped by a signal during an update -> the run, and the weights that each
    evaluation saw."""
    run, start = start_run(folder, optim=PLATEAU, **CHOOSING)
    seen: dict[int, torch.Tensor] = {}

    def evaluate(engine: Any, step: int) -> dict[str, float]:
        seen[step] = engine.module.tower.weight.detach().clone()
        return {"accuracy": ACCURACY[step - 1], "other": 1.0}

    def signalled() -> Iterator[dict]:
        for step, batch in enumerate(stream(start), start):
            if step == signal_at:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield batch

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    run.evaluate, run.evaluate_every = evaluate, 1
    loop.train(run, signalled(), start)
    run.watchdog.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return run, seen


def test_the_best_checkpoint_stays_the_rate_falls_and_training_ends(tmp_path: Path) -> None:
    run, seen = choosing(tmp_path)
    assert run.done == 7  # five evaluations after the one at 2
    assert max(seen) == 7
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr/base"] for line in lines if "lr/base" in line]
    assert rates == pytest.approx([1e-2] * 4 + [1e-3] * 2 + [1e-4])
    folder = tmp_path / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"latest", "best", "step_000002", "step_000007"}
    best = run.checkpoints.best()
    assert best == folder / "step_000002"
    assert torch.equal(run.checkpoints.weights(best)["tower.weight"], seen[2])  # averaged, as they were evaluated
    again, start = start_run(tmp_path, optim=PLATEAU, **CHOOSING)
    again.watchdog.close()
    assert (start, again.exhausted, again.record) == (7, True, run.record)
    (best / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ConfigError, match=r"best names step_000002, which is not whole"):
        run.checkpoints.best()


@pytest.mark.parametrize("step", [1, 3])
def test_a_signal_before_an_evaluation_changes_nothing(step: int, tmp_path: Path) -> None:
    """The evaluation after the stopped update is made up for: at 2 it is the best, at 4 it lowers the rate."""
    whole, _ = choosing(tmp_path / "whole")
    stopped, seen = choosing(tmp_path / "stopped", signal_at=step)
    assert (stopped.done, max(seen)) == (step + 1, step)
    resumed, seen = choosing(tmp_path / "stopped")
    assert min(seen) == step + 1
    assert resumed.record == whole.record
    runs = [tmp_path / name for name in ("whole", "stopped")]
    for name in ("model", "optimizer", "ema"):
        for place in ("step_000002", "step_000007"):
            first, second = (run / "checkpoints" / place / f"{name}.safetensors" for run in runs)
            assert first.read_bytes() == second.read_bytes(), (name, place)
    assert (runs[1] / "checkpoints" / "best").read_text() == "step_000002"


def test_a_failing_evaluation_costs_no_weights_and_is_made_up_for(tmp_path: Path) -> None:
    """The weights are saved before they are evaluated; the next start evaluates them first."""
    run, start = start_run(tmp_path, steps=4, save_every=100)

    def broken(engine: Any, step: int) -> dict[str, float]:
        raise OSError("an image cannot be read")

    run.evaluate, run.evaluate_every = broken, 3
    with pytest.raises(OSError, match="an image cannot be read"):
        loop.train(run, stream(start), start)
    run.watchdog.close()
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_000003"
    again, start = start_run(tmp_path, steps=4, save_every=100)
    seen = []
    again.evaluate, again.evaluate_every = lambda engine, step: seen.append(step) or {"figure": 1.0}, 3
    loop.train(again, stream(start), start)
    again.watchdog.close()
    assert (start, seen) == (3, [3, 4])


def test_the_rehearsal_comes_before_the_first_step_and_draws_nothing(tmp_path: Path) -> None:
    expected = trained(tmp_path / "whole", steps=3)
    run, start = start_run(tmp_path / "rehearsed", steps=3)
    seen = []

    def rehearse(engine: Any) -> None:
        assert not engine.module.training
        assert not torch.is_grad_enabled()
        seen.append((run.done, torch.rand(7)))

    run.rehearse = rehearse
    loop.train(run, stream(start), start)
    run.watchdog.close()
    assert [step for step, _ in seen] == [0]
    lines = [json.loads(line) for line in (tmp_path / "rehearsed" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss/total"] for line in lines] == [line["loss/total"] for line in expected]


def test_an_unknown_figure_ends_the_run_at_its_first_evaluation(tmp_path: Path) -> None:
    run, start = start_run(tmp_path, best="acc")
    run.evaluate, run.evaluate_every = lambda engine, step: {"accuracy": 0.5}, 2
    with pytest.raises(ConfigError, match=r"train\.best: the evaluation has no figure 'acc'; it has accuracy$"):
        loop.train(run, stream(start), start)
    run.watchdog.close()
    assert run.done == 2
