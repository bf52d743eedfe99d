"""Checkpoint folders: whole or ignored, pruned, strict about the model, and exact about random states."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toy_task import Regression, batch_of

from fiber.config.base import OptimConfig, TrainConfig
from fiber.errors import ConfigError
from fiber.training import zero
from fiber.training.checkpoint import Checkpoints, is_whole
from fiber.training.optim import AdamW, set_learning_rate
from fiber.training.random_state import rng_state, seed_all, set_rng_state


def engine_of(task: nn.Module, stage: int = 1) -> tuple[Any, AdamW]:
    return zero.build_engine(task, TrainConfig(global_batch=4, micro_batch=4, zero_stage=stage), OptimConfig(lr=0.01))


def advance(engine: Any, optimizer: AdamW, step: int) -> float:
    set_learning_rate(optimizer, 0.01)
    total = sum(engine(batch_of(step))[0].values())
    engine.backward(total)
    zero.optimizer_step(engine)
    return total.item()


@pytest.mark.usefixtures("alone")
def test_every_stage_goes_on_from_every_other(tmp_path: Path) -> None:
    engine, optimizer = engine_of(Regression(), stage=2)
    for step in range(3):
        advance(engine, optimizer, step)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(3, engine, optimizer, None, {"stream": {"step": 3}})
    expected = [advance(engine, optimizer, step) for step in (3, 4)]
    for stage in (0, 1, 2, 3):
        other, its_optimizer = engine_of(Regression(), stage)
        start, state = checkpoints.load(checkpoints.latest(), other, its_optimizer, None)
        assert (start, state) == (3, {"stream": {"step": 3}})
        assert other.module.queue.tolist() == [3.0, 3.0, 3.0]
        assert [advance(other, its_optimizer, step) for step in (3, 4)] == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("alone")
def test_half_written_checkpoints_are_ignored_and_old_ones_go(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    engine, optimizer = engine_of(Regression())
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, engine, optimizer, None, {})
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step_000002", "step_000003"]
    shutil.copytree(folder / "step_000003", folder / "step_000004")
    (folder / "step_000004" / "manifest.json").unlink()  # killed before the manifest
    (folder / ".step_000005.partial").mkdir()  # killed before the rename
    assert checkpoints.latest() == folder / "step_000003"
    (folder / "step_000003" / "model.safetensors").write_bytes(b"short")
    assert not is_whole(folder / "step_000003")
    capsys.readouterr()
    assert checkpoints.latest() == folder / "step_000002"
    said = capsys.readouterr().err
    assert "step_000003: it is not whole" in said
    checkpoints.clear_after(2)
    assert "removing .step_000005.partial: a save was interrupted" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == [
        "aside_step_000003", "aside_step_000004", "latest", "step_000002",
    ]  # fmt: skip
    manifest = json.loads((folder / "step_000002" / "manifest.json").read_text())
    sizes = {name: size for name, (size, _) in manifest.items()}
    assert set(sizes) == {"model.safetensors", "optimizer.safetensors", "rng.pt", "state.json", "config.yaml"}
    parameters = sum(p.numel() for p in Regression().parameters())
    assert sum(sizes.values()) < 3 * 4 * parameters + 40_000  # weights and two moments in fp32, nothing twice


class Wider(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(7, 34)


@pytest.mark.usefixtures("alone")
def test_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    engine, optimizer = engine_of(Regression())
    checkpoints = Checkpoints(tmp_path, keep=1)
    path = checkpoints.save(1, engine, optimizer, None, {})
    for stage in (1, 3):
        other, its_optimizer = engine_of(Wider(), stage)
        with pytest.raises(ConfigError, match=r"tower.weight is \(33, 7\), this model's is \(34, 7\)"):
            checkpoints.load(path, other, its_optimizer, None)
    more = Regression()
    more.extra = nn.Linear(2, 2)
    other, its_optimizer = engine_of(more)
    with pytest.raises(ConfigError, match=r"has no extra.weight: it is of another model"):
        checkpoints.load(path, other, its_optimizer, None)


def test_random_states_round_trip(tmp_path: Path) -> None:
    seed_all(3)
    torch.save(rng_state(), tmp_path / "rng.pt")

    def draws() -> tuple:
        return random.random(), float(np.random.rand()), torch.rand(3).tolist(), random.gauss(0, 1)  # noqa: NPY002

    first = draws()
    assert draws() != first
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert draws() == first


@pytest.mark.usefixtures("alone")
def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    engine, optimizer = engine_of(Regression())
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (999_998, 999_999, 1_000_000):
        checkpoints.save(step, engine, optimizer, None, {})
    folder = tmp_path / "checkpoints"
    assert {path.name for path in folder.glob("step_*")} == {"step_999999", "step_1000000"}
    (folder / "latest").unlink()
    assert checkpoints.latest() == folder / "step_1000000"


@pytest.mark.usefixtures("alone")
def test_the_checkpoint_just_saved_stays_whatever_lies_beside_it(tmp_path: Path) -> None:
    """Later checkpoints, of a past that was cut back, and broken ones do not push it out."""
    engine, optimizer = engine_of(Regression())
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 8, 9):
        Checkpoints(tmp_path, keep=9).save(step, engine, optimizer, None, {})
    checkpoints.clear_after(1)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "aside_step_000008",
        "aside_step_000009",
        "step_000001",
    ]
    (folder / "step_000007").mkdir()  # not whole
    (folder / "step_²").mkdir()  # no number
    checkpoints.save(2, engine, optimizer, None, {})
    assert checkpoints.latest() == folder / "step_000002"
    assert not (folder / "step_000001").exists()


@pytest.mark.usefixtures("alone")
def test_a_run_whose_checkpoints_are_all_broken_does_not_begin_again(tmp_path: Path) -> None:
    engine, optimizer = engine_of(Regression())
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.latest() is None
    path = checkpoints.save(3, engine, optimizer, None, {})
    (path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ConfigError, match=r"none of the checkpoints .* is whole"):
        checkpoints.latest()
    shutil.rmtree(path)  # `latest` names one that is gone
    with pytest.raises(ConfigError, match=r"none of the checkpoints .* is whole"):
        checkpoints.latest()


@pytest.mark.usefixtures("alone")
def test_changed_bytes_are_found_and_the_older_checkpoint_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One flipped bit in any file, of the right size; a manifest that lists nothing; names that lead elsewhere."""
    engine, optimizer = engine_of(Regression())
    checkpoints = Checkpoints(tmp_path, keep=9, config="seed: 1\n")
    older, newer = (checkpoints.save(step, engine, optimizer, None, {}) for step in (1, 2))
    for file in sorted(newer.iterdir()):
        content = file.read_bytes()
        if file.name != "manifest.json":
            file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            assert is_whole(newer)  # by size
            assert checkpoints.latest() == older, file.name
            assert f"{file.name} has changed since it was written" in capsys.readouterr().err
        for damaged in (b"{}", b"[]", bytes([255, 254]), b"[" * 5000) if file.name == "manifest.json" else ():
            file.write_bytes(damaged)
            assert checkpoints.latest() == older, damaged
        file.write_bytes(content)
    assert checkpoints.latest() == newer
    for named in (b"../checkpoints/step_000001", bytes([255]), b"step_000009"):
        (tmp_path / "checkpoints" / "latest").write_bytes(named)
        assert checkpoints.latest() == newer


@pytest.mark.usefixtures("alone")
def test_checkpoints_of_before_the_checksums_are_read(tmp_path: Path) -> None:
    engine, optimizer = engine_of(Regression())
    checkpoints = Checkpoints(tmp_path, keep=1)
    path = checkpoints.save(1, engine, optimizer, None, {})
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({name: size for name, (size, _) in manifest.items()}))
    assert checkpoints.latest() == path
    (path / "rng.pt").write_bytes(bytes(manifest["rng.pt"][0]))  # nobody can know
    with pytest.raises(ConfigError, match=r"step_000001 is damaged \(.*\); move it away"):
        checkpoints.load(path, engine, optimizer, None)
