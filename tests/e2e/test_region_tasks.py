"""The tuning modes at every ZeRO stage, and interrupted. (The launch scripts have tests in tests/launch.)"""

import shutil
from pathlib import Path

import pytest
from launcher import REPO, Job, losses

from fiber.data.convert.writer import write_dataset
from fiber.data.shapes.world import WORLDS, categories, generate, vocabulary_texts
from small_detector import write_detector


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with images of another world, a tokenizer, and `stage2`, the run to start from."""
    folder, novel = tmp_path_factory.mktemp("regions"), WORLDS["novel"]
    about = {"categories": categories(novel), "provenance": "drawn", "licence": "none"}
    write_dataset(generate(novel, "train", 10, seed=0), folder / "novel", name="novel", split="train", **about)
    write_detector(folder / "stage2", vocabulary_texts(WORLDS["easy"], 40), 400, max_text=64)
    (folder / "stage2" / "tokenizer").rename(folder / "tokenizer")
    return folder


def train_all(lines: list[str], world: Path, folder: Path) -> None:
    """One job of two ranks with a run for each line of overrides."""
    folder.mkdir()
    (folder / "runs.txt").write_text("\n".join(lines))
    few = world / "novel"
    words = (
        f"init_from={world / 'stage2'}", f"tokenizer={world / 'tokenizer'}", f"data.train.0.path={few}",
        "eval.data=[]", "train.log_every=1", "train.save_every=2", "train.keep=9", "train.steps=4", "optim.warmup=0",
        "optim.lr=1e-3", "optim.schedule=step", "optim.milestones=[0.99]",
    )  # fmt: skip
    config, tool = REPO / "configs" / "stage2" / "shapes_few_shot.yaml", REPO / "tools" / "train_many.py"
    with Job(tool, "--config", config, "--runs", folder / "runs.txt", *words, folder=folder) as job:
        job.succeed()


def test_every_zero_stage_and_resume(world: Path, tmp_path: Path) -> None:
    """A mode has the same losses at every ZeRO stage, and from a checkpoint that a kill half-way has left."""
    # 2 divides gradients, too, which no mode sees: one shows it.
    names = [
        "full_2",
        *(f"{mode}_{zero}" for mode in ("full", "frozen_towers", "lora", "prompt") for zero in (0, 1, 3)),
    ]
    resumed = [name for name in names if name.endswith(("1", "3"))]

    def lines(folder: Path, names: list[str]) -> list[str]:
        chosen = [name.rsplit("_", 1) for name in names]
        return [f"output={folder}/{mode}_{zero} tuning.mode={mode} train.zero_stage={zero}" for mode, zero in chosen]

    whole, again = tmp_path / "whole", tmp_path / "again"
    train_all(lines(whole, names), world, tmp_path / "first")
    for name in resumed:
        shutil.copytree(whole / name / "checkpoints/step_000002", again / name / "checkpoints/step_000002")
        shutil.copy(whole / name / "config.yaml", again / name)
    train_all(lines(again, resumed), world, tmp_path / "second")
    for name in names:
        curve, mode = losses(whole / name), name.rsplit("_", 1)[0]
        assert len(curve) == 4
        assert curve == pytest.approx(losses(whole / f"{mode}_0"), rel=1e-5), name
        assert curve[3] != curve[0]
        if name in resumed:
            assert losses(again / name) == {step: curve[step] for step in (2, 3)}, name
