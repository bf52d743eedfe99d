"""The launch scripts of the region-level tasks, a few steps of each, from a small detector."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from launcher import REPO, Job, environment, free_port, losses, metrics
from small_detector import write_detector

from fiber.data.convert.writer import write_dataset
from fiber.data.shapes.world import WORLDS, categories, generate, vocabulary_texts
from fiber.weights.export import read_export

MODES = ("full", "frozen_towers", "lora", "linear", "prompt")
SMALL = [
    "train.precision=fp32", "train.log_every=1", "regions.short_sides=[64]", "regions.test_side=64",
    "regions.max_side=96", "regions.figures=1", "eval.batch=8", "data.workers=0", "model.checkpointing=false",
]  # fmt: skip


def run(command: str, folder: Path, **variables: object) -> str:
    """A launch script, as a user calls it -> its stdout."""
    settings = {name: str(value) for name, value in variables.items()}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=REPO,
        env=environment(folder) | {"MASTER_PORT": str(free_port())} | settings,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the easy world's splits, a tokenizer, and `stage2`, the run to start from."""
    folder, easy = tmp_path_factory.mktemp("regions"), WORLDS["easy"]
    about = {"categories": categories(easy), "provenance": "drawn", "licence": "none", "name": "shapes_easy"}
    for split, count in (("train", 24), ("val", 6), ("test", 10), ("compositional", 10)):
        write_dataset(generate(easy, split, count, seed=0), folder / split, split=split, **about)
    write_detector(folder / "stage2", vocabulary_texts(easy, 40), 400, max_text=64)
    (folder / "stage2" / "tokenizer").rename(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def tasks(world: Path) -> Path:
    """What launch/shapes_region_tasks.sh leaves behind."""
    sizes = {"STEPS": 2, "FEW_STEPS": 2, "SHOTS": "1 2", "SEEDS": "0", "SCENES": 40, "HELD_OUT": 8}
    places = {"STAGE2": world / "stage2", "SHAPES": world, "OUT": world / "out"}
    printed = run("launch/shapes_region_tasks.sh train.log_every=1", world, **sizes, **places)
    assert json.loads(printed.splitlines()[-1])["out"] == str(world / "out" / "table.md")
    return world / "out"


def test_the_table_has_every_task_beside_its_baseline(tasks: Path) -> None:
    lines = (tasks / "table.md").read_text().splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
    expected = (
        "phrase grounding, as pre-trained",
        "referring expressions, never trained on",
        "referring expressions, fine-tuned",
        "detection of combinations never seen before, zero-shot",
        "detection of known ones, fine-tuned",
        "long tail, zero-shot",
        *MODES,
    )
    for start in expected:
        assert sum(name.startswith(start) for name in rows) >= 1, start
    before = json.loads((tasks / "zero_shot.json").read_text())
    assert before["step"] == 0
    assert {"shapes_easy_test/ap", "shapes_easy_compositional/ap", "referring_p1", "grounding_r1"} <= set(before)
    after = json.loads((tasks / "detect" / "summary.json").read_text())["eval"]
    assert {"shapes_easy_test/lvis_apr", "shapes_easy_compositional/ap50"} <= set(after)


def test_every_tuning_mode_from_a_few_images(tasks: Path, world: Path) -> None:
    """Each ran from its own subset; its export differs from the start just where the mode says."""
    start = read_export(world / "stage2").tensors
    for mode in MODES:
        for shots in (1, 2):
            folder = tasks / "few_shot" / f"{mode}_{shots}_0"
            assert set(json.loads((folder / "summary.json").read_text())) == {"steps", "eval"}
            export = read_export(folder)
            assert len(export.categories) == 20
            changed = {n for n, x in export.tensors.items() if n not in start or not torch.equal(x, start[n])}
            assert changed, mode
            towers = {name for name in changed if name.startswith(("backbone.image.", "backbone.text."))}
            towers -= {name for name in towers if "stage_norms" in name}
            assert bool(towers) == (mode in ("full", "lora")), (mode, towers)
            assert (changed == {"prompt"}) == (mode == "prompt")
            assert all(name.startswith("head.") for name in changed) == (mode == "linear")
    few = json.loads((tasks / "shards" / "novel_1_0" / "dataset.json").read_text())
    assert few["provenance"]["few_shot"]["shots"] == 1


def test_every_zero_stage_and_resume(world: Path, tasks: Path, tmp_path: Path) -> None:
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
    few = tasks / "shards" / "novel_2_0"
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


def test_before_and_after_on_several_sets(world: Path) -> None:
    """launch/detection.sh: the same sets zero-shot and fine-tuned; launch/refcoco.sh: every split by its name."""
    out, common = world / "coco", f"tokenizer={world / 'tokenizer'} {' '.join(SMALL)} optim.warmup=0"
    places = {"MODEL": world / "stage2", "RANKS": 1, "SHARDS": world}
    kept = {"OUT": out, "KEEP": world / "compositional"}
    batch = "train.steps=2 train.global_batch=4 train.micro_batch=4"
    run(f"launch/detection.sh coco_detection max_text=128 {common} {batch}", world, **places, **kept)
    before, after = (json.loads((out / f"{name}.json").read_text()) for name in ("before", "after"))
    assert (before["step"], after["step"]) == (0, 2)
    assert set(before) == set(after) >= {"shapes_easy_val/ap", "shapes_easy_compositional/ap"}

    (world / "testA").symlink_to(world / "test")
    (world / "testB").symlink_to(world / "compositional")
    printed = run(f"launch/refcoco.sh refcoco {common} {batch}", world, **places, OUT=world / "refcoco")
    figures = json.loads(next(line for line in printed.splitlines() if line.startswith('{"step"')))
    assert {f"shapes_easy_{split}/referring_p1" for split in ("val", "test", "compositional")} <= set(figures)


def test_sets_of_odinw_zero_shot_and_with_a_few_images(world: Path) -> None:
    """launch/odinw.sh: the best weights on val are kept; its runs are what the table reads."""
    sets, out = world / "sets", world / "odinw"
    sets.mkdir()
    (sets / "Shapes").symlink_to(world)
    words = " ".join(["max_text=128", f"tokenizer={world / 'tokenizer'}", "train.steps=4", "eval.every=2", *SMALL])
    places = {"MODEL": world / "stage2", "SHARDS": sets, "OUT": out, "RANKS": 1, "SHOTS": "0 1", "SEEDS": 3}
    run(f"launch/odinw.sh Shapes -- {words}", world, **places)
    assert json.loads((out / "Shapes" / "zero_shot" / "figures.json").read_text())["step"] == 0
    summary = json.loads((out / "Shapes" / "1_shot_full_3" / "summary.json").read_text())
    assert summary["best"]["figure"] == "ap"
    assert len([line for line in metrics(out / "Shapes" / "1_shot_full_3") if "eval/ap" in line]) == 2
    table = run(f"python tools/odinw_table.py {out}", world)
    assert set(json.loads(table.splitlines()[-1])) == {"zero-shot", "1-shot full"}
