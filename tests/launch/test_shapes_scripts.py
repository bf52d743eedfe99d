"""launch/shapes_image_tasks.sh and shapes_region_tasks.sh: every task of the shapes world in a few steps, and the
tables that they end in."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import fiber
from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.coarse.model import CoarseModel
from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config
from fiber.data.convert.writer import write_dataset
from fiber.data.shapes.world import WORLDS, answers, categories, generate, vocabulary_texts
from fiber.data.shards import ShardSet
from fiber.data.text import load_tokenizer
from fiber.weights.export import read_export, write_export
from fiber.weights.export_config import coarse_config
from small_detector import MODEL, write_detector

MODES = ("full", "frozen_towers", "lora", "linear", "prompt")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the easy world's splits, a tokenizer, and `stage2`, the run to start from."""
    folder, easy = tmp_path_factory.mktemp("regions"), WORLDS["easy"]
    about = {"categories": categories(easy), "provenance": "drawn", "licence": "none", "name": "shapes_easy"}
    about["answers"] = answers(easy)
    for split, count in (("train", 24), ("val", 6), ("test", 10), ("compositional", 10)):
        write_dataset(generate(easy, split, count, seed=0), folder / split, split=split, **about)
    write_detector(folder / "stage2", vocabulary_texts(easy, 40), 400, max_text=64)
    (folder / "stage2" / "tokenizer").rename(folder / "tokenizer")
    return folder


# ---------------------------------------------------------------------------------------------- region level


@pytest.fixture(scope="module")
def tasks(world: Path, launch: Callable[..., str]) -> Path:
    """What launch/shapes_region_tasks.sh leaves behind."""
    sizes = {"STEPS": 2, "FEW_STEPS": 2, "SHOTS": "1 2", "SEEDS": "0", "SCENES": 40, "HELD_OUT": 8}
    places = {"STAGE2": world / "stage2", "SHAPES": world, "OUT": world / "out"}
    one_rank = ["train.log_every=1", "train.global_batch=8", "train.micro_batch=8"]
    printed = launch("shapes_region_tasks.sh", *one_rank, **sizes, **places)
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


# ---------------------------------------------------------------------------------------------- image level


@pytest.fixture(scope="module")
def start(world: Path) -> Path:
    """A stage-1 run with nothing but an export, of weights drawn at random."""
    (world / "stage1.yaml").write_text(
        yaml.safe_dump(
            {
                "output": str(world / "stage1"),
                "image_size": 64,
                "max_text": 24,
                "tokenizer": str(world / "tokenizer"),
                "model": MODEL | {"head_width": 32},
            }
        )
    )
    settings, tokenizer = load_config(Stage1Config, world / "stage1.yaml"), load_tokenizer(world / "tokenizer")
    backbone = build_backbone(settings.model, len(tokenizer), tokenizer.pad_token_id, settings.max_text)
    model = CoarseModel(backbone, head_width=settings.model.head_width, vocab_size=len(tokenizer))
    initialise(model, "fan_in", seed=5)
    write_export(world / "stage1" / "export", model.state_dict(), coarse_config(settings, tokenizer), tokenizer)
    return world / "stage1"


@pytest.fixture(scope="module")
def table(start: Path, world: Path, launch: Callable[..., str]) -> Path:
    """The folder that launch/shapes_image_tasks.sh fills in a few steps of every task but captioning, which has a
    test of its own (tests/e2e/test_caption_run.py)."""
    out = world / "image_tasks"
    variables = {"STAGE1": start, "SHAPES": world, "OUT": out, "PAIRS": 32, "STEPS": 2, "STARTS": "stage1"}
    variables |= {"TASKS": "vqa nlvr2 snli_ve retrieval_itc retrieval_itm"}
    small = ["train.global_batch=8", "train.micro_batch=8", "train.log_every=1", "eval.batch=8", "max_text=24"]
    launch("shapes_image_tasks.sh", *small, **variables)
    return out


def test_every_task_trains_keeps_its_best_weights_and_lands_in_the_table(table: Path) -> None:
    figures = {"vqa": "accuracy", "nlvr2": "accuracy", "snli_ve": "accuracy"}
    figures |= {"retrieval_itc": "r_mean", "retrieval_itm": "reranked_r_mean"}
    for name, figure in figures.items():
        folder = table / f"{name}_stage1"
        tested, summary = (json.loads((folder / f).read_text()) for f in ("test.json", "summary.json"))
        assert summary["best"]["figure"] == figure
        assert 0 <= tested[figure] <= 1
        assert tested["step"] == summary["best"]["step"]
        assert (folder / "predictions").is_dir()
        assert fiber.load(folder).config.model.image.embed_dim == 16  # the sizes of the run it started from
    lines = (table / "table.md").read_text().splitlines()
    assert lines[0] == "| score | from stage 1 | baseline | |"
    assert len(lines) == 2 + 8
    assert any(line.startswith("| questions: accuracy | ") for line in lines)


def test_the_model_that_was_trained_answers(table: Path, world: Path, tmp_path: Path) -> None:
    extension, data = ShardSet(world / "test").read(0).images[0]
    (tmp_path / f"a.{extension}").write_bytes(data)
    model = fiber.load(table / "vqa_stage1")
    assert model.tasks == ("answer",)
    (found,) = model.answer(tmp_path / f"a.{extension}", "is there a red circle?")
    assert {answer.text for answer in found} <= set(answers(WORLDS["easy"]))
    assert fiber.load(table / "retrieval_itm_stage1").tasks == ("match", "retrieve", "embed", "classify")
    assert fiber.load(table / "retrieval_itc_stage1").tasks == ("retrieve", "embed", "classify")
