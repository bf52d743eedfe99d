"""Interrupted runs equal uninterrupted ones: killed at a random step, on fewer ranks, stopped by a signal."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from launcher import STAGE1, Job, free_port, losses, metrics, seeded

from fiber.errors import INTERRUPTED
from fiber.weights.export import read_export

STEPS = 20
# A rate that falls with the first evaluation without gain, and a best checkpoint, so that the evaluations count.
CHOOSING = ("eval.every=4", "train.best=t2i_r1", "optim.schedule=plateau", "optim.patience=1", "train.ema=0.9")


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks that nothing interrupts, with ZeRO-1, an average and a choice; all checkpoints are kept."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with Job(STAGE1, "--config", config, f"output={run}", "train.keep=9", *CHOOSING, folder=run.parent) as job:
        output = job.succeed()
    assert "Traceback" not in output
    assert "Warning" not in output
    return run


def test_a_run_leaves_what_it_promises(whole: Path) -> None:
    lines = metrics(whole)
    training = [line for line in lines if "loss/total" in line]
    assert [line["step"] for line in training] == list(range(STEPS))
    weighted = [sum(v for k, v in line.items() if k.startswith("weighted/")) for line in training]
    assert weighted == pytest.approx([line["loss/total"] for line in training], rel=1e-5)
    assert training[0]["lr/base"] == 0.0  # the first update has learning rate 0
    assert {"grad_norm", "pairs_per_second", "seconds/data", "seconds/compute", "memory/peak_gib"} <= set(training[3])
    assert any(name.startswith("gate/") for name in training[3])
    assert {"eval/t2i_r1", "eval/reranked_t2i_r1"} <= set(lines[-1])
    recall = {line["step"] + 1: line["eval/t2i_r1"] for line in lines if "eval/t2i_r1" in line}
    assert list(recall) == [4, 8, 12, 16, 20]
    best = max(recall, key=recall.get)  # the first of equals
    assert {path.name for path in (whole / "checkpoints").glob("step_*")} >= {
        "step_000008",
        "step_000016",
        "step_000020",
        f"step_{best:06d}",
    }
    assert (whole / "checkpoints" / "latest").read_text() == "step_000020"
    assert (whole / "checkpoints" / "best").read_text() == f"step_{best:06d}"
    assert json.loads((whole / "deepspeed.json").read_text())["gradient_clipping"] == 1.0
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["best"] == {"figure": "t2i_r1", "step": best}
    assert summary["eval"]["t2i_r1"] == recall[best]
    rates = {line["step"]: line["lr/base"] for line in training}
    assert rates[STEPS - 1] == pytest.approx(plateau_rate(list(recall.values())[:-1]))
    assert read_export(whole / "export").config.image_size == 64


def plateau_rate(values: list[float]) -> float:
    """torch's rate after these evaluations, with a patience of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=1)
    for value in values:
        schedule.step(value)
    return optimizer.param_groups[0]["lr"]


def test_killed_at_a_random_step_and_restarted(whole: Path, config: Path, tmp_path: Path) -> None:
    """Loss for loss to the last bit, with another number of loader workers; a half-written save is ignored."""
    run, victim = tmp_path / "run", seeded(9, 18)
    command = (STAGE1, "--config", config, f"output={run}", *CHOOSING)
    with Job(*command, folder=tmp_path) as job:
        job.until(lambda: victim in losses(run))
    assert not (run / "summary.json").exists()
    before = losses(run)
    newest = (run / "checkpoints" / "latest").read_text()  # which older ones are left depends on the step
    shutil.copytree(run / "checkpoints" / newest, run / "checkpoints" / "step_000019")
    (run / "checkpoints" / "step_000019" / "optimizer.safetensors").write_bytes(b"cut short")
    (run / "checkpoints" / "latest").write_text("step_000019")
    with Job(*command, "data.workers=2", folder=tmp_path) as job:
        output = job.succeed()
    assert "step_000019: it is not whole" in output
    assert "data.workers: was 1, is 2" in output
    expected = losses(whole)
    assert {step: expected[step] for step in before} == before
    assert losses(run) == expected, f"killed after step {victim}"
    for name in ("model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"):
        path = Path("checkpoints", "step_000020", name)
        assert (run / path).read_bytes() == (whole / path).read_bytes(), name
    assert (run / "checkpoints" / "best").read_text() == (whole / "checkpoints" / "best").read_text()


def test_two_ranks_resumed_on_one(whole: Path, config: Path, tmp_path: Path) -> None:
    """The same global batch on another number of ranks, and another ZeRO stage: the losses go on alike."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for folder in (whole / "checkpoints").glob("step_*"):
        if folder.name <= "step_000008":  # the newest, and what may be the best so far
            shutil.copytree(folder, run / "checkpoints" / folder.name)
    shutil.copy(whole / "config.yaml", run)
    changed = ("train.micro_batch=8", "train.zero_stage=0", *CHOOSING)
    with Job(STAGE1, "--config", config, f"output={run}", *changed, folder=tmp_path, ranks=1) as job:
        output = job.succeed()
    assert "going on from" in output
    for name in ("loss/total", "weighted/itc", "weighted/mlm", "weighted/itm"):  # samples, masks, drawn negatives
        expected = losses(whole, name)
        assert losses(run, name) == pytest.approx({step: expected[step] for step in range(8, STEPS)}, rel=1e-5), name


def test_two_nodes_stop_at_a_signal_and_save(config: Path, tmp_path: Path) -> None:
    """Two launchers, one per node, joined through a hostfile without ssh; SIGUSR1 to one rank stops and saves all."""
    run, hosts = tmp_path / "run", tmp_path / "hostfile"
    hosts.write_text("node-a slots=1\nnode-b slots=1\n")
    shared = ("--hostfile", hosts, "--no_ssh", "--master_addr", "127.0.0.1", "--master_port", free_port())
    command = (STAGE1, "--config", config, f"output={run}", "train.steps=10000")
    with (
        Job(*command, folder=tmp_path / "a", options=(*shared, "--node_rank", 0)) as first,
        Job(*command, folder=tmp_path / "b", options=(*shared, "--node_rank", 1)) as second,
    ):
        first.until(lambda: 3 in losses(run))
        os.kill(second.rank_pid(1), signal.SIGUSR1)
        start = time.monotonic()
        assert (first.wait(), second.wait()) == (INTERRUPTED, INTERRUPTED), first.output + second.output
    assert first.output.count("not finished, the same command goes on") == 1
    assert not (run / "summary.json").exists()
    last = max(losses(run))
    assert last < 5000, f"ran on for {time.monotonic() - start:.0f} s after the signal"
    assert (run / "checkpoints" / "latest").read_text() == f"step_{last + 1:06d}"
