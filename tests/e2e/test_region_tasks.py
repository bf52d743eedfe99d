"""The tuning modes at every ZeRO stage, and interrupted. (The launch scripts have tests in tests/launch.)"""

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


def test_every_zero_stage_and_resume(world: Path, tmp_path: Path) -> None:
    """One job: a mode has the same losses at every ZeRO stage, and stopped half-way and resumed."""
    names = [f"{mode}_{zero}" for mode in ("full", "frozen_towers", "lora", "prompt") for zero in range(4)]
    resumed = [name for name in names if name.endswith(("1", "3"))]
    lines = []
    for name in names:
        mode, zero = name.rsplit("_", 1)
        words = f"tuning.mode={mode} train.zero_stage={zero}"
        lines += [f"output={tmp_path}/whole/{name} {words} train.steps=4"]
        lines += [f"output={tmp_path}/halves/{name} {words} train.steps={n}" for n in (2, 4) if name in resumed]
    (tmp_path / "runs.txt").write_text("\n".join(lines))
    few = world / "novel"
    words = (
        f"init_from={world / 'stage2'}", f"tokenizer={world / 'tokenizer'}", f"data.train.0.path={few}",
        "eval.data=[]", "train.log_every=1", "train.save_every=2", "optim.warmup=0", "optim.lr=1e-3",
        "optim.schedule=step", "optim.milestones=[0.99]",
    )  # fmt: skip
    config, tool = REPO / "configs" / "stage2" / "shapes_few_shot.yaml", REPO / "tools" / "train_many.py"
    with Job(tool, "--config", config, "--runs", tmp_path / "runs.txt", *words, folder=tmp_path / "job") as job:
        job.succeed()
    for name in names:
        whole, mode = losses(tmp_path / "whole" / name), name.rsplit("_", 1)[0]
        assert len(whole) == 4
        assert name not in resumed or losses(tmp_path / "halves" / name) == whole, name
        assert whole == pytest.approx(losses(tmp_path / "whole" / f"{mode}_0"), rel=1e-5), name
        assert whole[3] != whole[0]
