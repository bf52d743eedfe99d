"""Tasks fine-tuned at image level from a stage-1 export: the same training at every ZeRO stage; interrupted runs that
go on bit for bit. (The launch scripts have tests in tests/launch.)"""

import shutil
from pathlib import Path

import pytest
import yaml
from launcher import Job, losses, metrics

from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.coarse.model import CoarseModel
from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config
from fiber.data.convert.writer import write_dataset
from fiber.data.shapes.world import WORLDS, answers, generate, generate_pairs
from fiber.data.text import load_tokenizer
from fiber.tasks.table import TABLE
from fiber.weights.export import write_export
from fiber.weights.export_config import coarse_config

SCRIPT = Path(__file__).with_name("zero_stages.py")
STEPS, HALF = 4, 2
FIELD_OF = {row.name: row.fields[0] for row in TABLE}
TASKS = ("vqa", "nlvr2", "entailment", "retrieval_itc", "retrieval_itm")
ADAPTED = ("frozen_towers", "lora")


@pytest.fixture(scope="module")
def sets(shapes: Path) -> Path:
    """Folder with scenes (`train`, `val`, `test`), pairs of images beside them (`pairs_...`) and a tokenizer."""
    folder, world = shapes / "tasks", WORLDS["easy"]
    for split, count in (("train", 32), ("val", 8), ("test", 8)):
        about = {"split": split, "provenance": "drawn", "licence": "none"}
        scenes = generate(world, split, count, seed=0)
        write_dataset(scenes, folder / split, name="scenes", answers=answers(world), **about)
        write_dataset(generate_pairs(world, split, count, seed=0), folder / f"pairs_{split}", name="pairs", **about)
    shutil.copytree(shapes / "tokenizer", folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def start(config: Path, sets: Path) -> Path:
    """A run directory with nothing but an export, of weights drawn at random, with open gates."""
    settings, tokenizer = load_config(Stage1Config, config), load_tokenizer(sets / "tokenizer")
    backbone = build_backbone(settings.model, len(tokenizer), tokenizer.pad_token_id, settings.max_text)
    model = CoarseModel(backbone, head_width=settings.model.head_width, vocab_size=len(tokenizer))
    initialise(model, "fan_in", seed=5)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.5)
    write_export(sets / "start" / "export", model.state_dict(), coarse_config(settings, tokenizer), tokenizer)
    return sets / "start"


def variant(name: str, task: str, sets: Path, **changed: object) -> str:
    prefix = "pairs_" if task == "nlvr2" else ""
    words = {"task": task, "data.workers": 0, "finetune.negatives": "hard"} | changed
    for section, split in (("data.train", "train"), ("eval.data", "val")):
        words |= {f"{section}.0.path": sets / f"{prefix}{split}", f"{section}.0.field": FIELD_OF[task]}
    return f"{name}:" + ",".join(f"{key}={value}" for key, value in words.items())


@pytest.fixture(scope="module")
def task_config(config: Path, start: Path, sets: Path) -> Path:
    tree = yaml.safe_load(config.read_text())
    tree |= {"init_from": str(start), "tokenizer": str(sets / "tokenizer")}
    tree["train"] |= {"steps": STEPS, "save_every": HALF, "keep": 9}
    path = sets / "task.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def runs(task_config: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a run of every variant, all from one job of two ranks. Stage 3 comes last: it leaves another
    linear map behind in its process, which rounds otherwise."""
    folder = tmp_path_factory.mktemp("tasks")
    variants = []
    for stage in range(4):
        tasks = TASKS if stage != 2 else TASKS[:1]  # 2 divides gradients, too, which no task sees: one shows it
        variants += [variant(f"{task}{stage}", task, sets, **{"train.zero_stage": stage}) for task in tasks]
        if stage in (0, 3):
            tuned = {"train.zero_stage": stage}
            variants += [variant(f"{mode}{stage}", "vqa", sets, **tuned | {"tuning.mode": mode}) for mode in ADAPTED]
    with Job(SCRIPT, task_config, folder, *variants, folder=folder) as job:
        output = job.succeed()
    assert "Traceback" not in output
    return folder


@pytest.mark.parametrize(
    ("task", "stage"),
    [("vqa", 2)] + [(task, stage) for task in TASKS for stage in (1, 3)] + [(mode, 3) for mode in ADAPTED],
)
def test_zero_stages_agree(task: str, stage: int, runs: Path) -> None:
    one, other = runs / f"{task}0", runs / f"{task}{stage}"
    expected = losses(one)
    assert len(expected) == STEPS
    assert losses(other) == pytest.approx(expected, rel=1e-5)
    assert losses(other, "grad_norm") == pytest.approx(losses(one, "grad_norm"), rel=1e-4)
    figures = [{k: v for k, v in metrics(run)[-1].items() if k.startswith("eval/")} for run in (one, other)]
    assert figures[0]
    assert figures[1] == pytest.approx(figures[0], rel=1e-4)


def test_interrupted_runs_go_on_bit_for_bit(runs: Path, task_config: Path, sets: Path, tmp_path: Path) -> None:
    """Every task from the checkpoint that a kill would have left in the middle."""
    variants = []
    for task in TASKS:
        whole, again = runs / f"{task}1", tmp_path / f"{task}1"
        shutil.copytree(whole / "checkpoints" / f"step_{HALF:06d}", again / "checkpoints" / f"step_{HALF:06d}")
        shutil.copy(whole / "config.yaml", again)
        variants.append(variant(f"{task}1", task, sets, **{"train.zero_stage": 1, "data.workers": 1}))
    with Job(SCRIPT, task_config, tmp_path, *variants, folder=tmp_path) as job:
        job.succeed()
    for task in TASKS:
        expected = losses(runs / f"{task}1")
        assert losses(tmp_path / f"{task}1") == {step: expected[step] for step in range(HALF, STEPS)}, task
        for name in ("model", "optimizer"):
            path = Path(f"{task}1", "checkpoints", f"step_{STEPS:06d}", f"{name}.safetensors")
            assert (tmp_path / path).read_bytes() == (runs / path).read_bytes(), (task, name)
