"""Image classification from class folders, and what a new task costs: one file and one row."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import fiber.tasks.table as table
from fiber import stage1_coarse
from fiber.config.command import Command
from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shards import ShardSet
from fiber.data.text import load_tokenizer
from fiber.errors import SampleFault
from fiber.evaluation.context import EvalContext, evaluate_sets
from fiber.tasks import classification, vqa
from fiber.tasks.coarse_model import coarse_task
from fiber.training.task import Figures, TaskModule
from fiber.training.watchdog import Watchdog
from fiber.weights.export import read_export

REPO = Path(__file__).resolve().parents[2]
COLOURS = {"deep_red": (200, 30, 30), "green": (30, 180, 40), "pale_blue": (120, 150, 240)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of noisy colours as shards (train, val), and a tokenizer."""
    folder, draw = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, colour in COLOURS.items():
            (folder / "raw" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(colour) + draw.normal(0, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "raw" / split / name / f"{number}.png")
        subprocess.run(
            [sys.executable, REPO / "tools" / "make_shards.py", "class_folders", "--raw", folder / "raw",
             "--split", split, "--out", folder / split, "--workers", "1"],
            check=True, capture_output=True,
        )  # fmt: skip
    train_bpe(["a photo of a deep red.", "green", "pale blue"], 280, folder / "tokenizer")
    return folder


def configured(world: Path, out: Path, *overrides: str) -> Stage1Config:
    tree = {
        "output": str(out),
        "tokenizer": str(world / "tokenizer"),
        "task": "classification",
        "image_size": 32,
        "max_text": 16,
        "model": {
            "image": {"embed_dim": 8, "depths": [1, 2], "heads": [1, 2], "window": 4, "drop_path": 0.0},
            "text": {"width": 16, "layers": 2, "heads": 2, "intermediate": 32, "dropout": 0.0},
            "num_fused": 2,
            "head_width": 12,
            "init": "fan_in",
        },
        "finetune": {"augment": False},
        "data": {"train": [{"path": str(world / "train")}], "workers": 0},
        "optim": {"lr": 3e-3, "warmup": 0},
        "train": {"steps": 30, "global_batch": 12, "micro_batch": 12, "log_every": 10, "save_every": 1000},
        "eval": {"data": [{"path": str(world / "val")}], "batch": 5},
    }
    (out.parent / "run.yaml").write_text(yaml.safe_dump(tree))
    return load_config(Stage1Config, out.parent / "run.yaml", overrides)


def run(config: Stage1Config) -> dict:
    watchdog = Watchdog(60.0)
    stage1_coarse.stage1(Command(config, "train"), watchdog)
    watchdog.close()
    return json.loads((Path(config.output) / "summary.json").read_text())["eval"]


def test_class_folders_become_captions_and_categories(world: Path) -> None:
    shards = ShardSet(world / "train")
    assert [category["name"] for category in shards.categories] == ["deep red", "green", "pale blue"]
    assert shards.count("captions") == len(shards) == 24
    texts = [shards.record(i)["captions"][0]["text"] for i in range(24)]
    assert {name: texts.count(name) for name in set(texts)} == {"deep red": 8, "green": 8, "pale blue": 8}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("mode", ["full", "frozen_towers"])
def test_a_head_learns_the_classes_and_is_exported(world: Path, tmp_path: Path, mode: str) -> None:
    config = configured(world, tmp_path / "run", f"tuning.mode={mode}")
    figures = run(config)
    assert figures["top1"] > 0.9
    assert figures["top5"] == 1.0  # of three classes
    assert figures["majority_top1"] == pytest.approx(1 / 3)
    assert figures["images"] == 12
    rows = [json.loads(line) for line in (tmp_path / "run/predictions/classification.jsonl").read_text().splitlines()]
    assert sum(row["head"][0] == row["class"] for row in rows) / 12 == figures["top1"]
    assert sum(row["zero_shot"][0] == row["class"] for row in rows) / 12 == figures["zero_shot_top1"]
    export = read_export(tmp_path / "run")
    assert export.answers == ["deep red", "green", "pale blue"]
    assert export.config.classifiers == {"classification": 3}
    assert export.tensors["heads.classifiers.classification.0.weight"].shape[1] == 12  # one pooled vector
    # another run starts from it, head and all
    again = configured(world, tmp_path / "again", f"init_from={tmp_path / 'run'}", "train.steps=1", "optim.lr=1e-9")
    assert run(again)["top1"] == figures["top1"]


def test_labels_are_places_among_the_classes_of_the_head(world: Path, tmp_path: Path) -> None:
    """A second training set that lists the same classes in another order, and one more, is labelled so too."""
    shutil.copytree(world / "train", tmp_path / "other")
    facts = json.loads((tmp_path / "other/dataset.json").read_text())
    names = ["pale blue", "deep red", "grey"]
    facts["categories"] = [{"id": number, "name": name} for number, name in enumerate(names)]
    (tmp_path / "other/dataset.json").write_text(json.dumps(facts))
    config = configured(world, tmp_path / "run")
    assert len(config.data.train) == 1
    assert classification.class_names(config) == ["deep red", "green", "pale blue"]
    make = classification.build_sample(config, load_tokenizer(config.tokenizer))
    shards = ShardSet(tmp_path / "other")
    draw = np.random.default_rng(0)
    sample = shards.read(0)
    for label, name in enumerate(["deep red", "green", "pale blue"]):
        sample.record["captions"][0]["text"] = name
        assert make(sample, "captions", 0, draw)["labels"] == label
    sample.record["captions"][0]["text"] = "grey"
    with pytest.raises(SampleFault, match="'grey' is none of the 3 classes"):
        make(sample, "captions", 0, draw)


def test_zero_shot_is_the_nearest_mean_of_prompts(world: Path, tmp_path: Path) -> None:
    config = configured(world, tmp_path / "run")
    tokenizer = load_tokenizer(config.tokenizer)
    task = classification.build_module(config, tokenizer).eval()
    vectors = classification.prompt_classifier(task.model, task.answers, tokenizer, config.max_text)
    assert vectors.shape == (3, 12)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    texts = [template.format("green") for template in classification.TEMPLATES]
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        features = task.model.text_embedding(task.model.text_prefix(encoded["input_ids"], encoded["attention_mask"]))
    mean = features.mean(0)
    torch.testing.assert_close(vectors[1], mean / mean.norm(), atol=1e-5, rtol=0)


class Guess(TaskModule):
    """A throw-away task: the model's temperature is pulled towards one."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        model.requires_grad_(False)
        model.heads.temperature.requires_grad_(True)

    def forward(self, batch: dict) -> tuple:
        loss = (self.model.heads.temperature() - 1).square().sum()
        return {"guess": loss}, {"loss/guess": loss.detach()}


def score_guess(task: Guess, context: EvalContext) -> Figures:
    return {"temperature": float(task.model.heads.temperature())}


@pytest.mark.usefixtures("alone")
def test_a_new_task_is_one_row(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, evaluated and exported by the entrypoint; nothing else knows its name."""
    row = coarse_task(
        name="guess",
        fields=("captions",),
        build_sample=classification.build_sample,
        build_module=lambda config, tokenizer: Guess(vqa.build_model(config, tokenizer)),
        evaluate=partial(evaluate_sets, score_guess),
        flops=lambda config, module: None,
    )
    monkeypatch.setattr(table, "TABLE", (*table.TABLE, row))
    config = configured(world, tmp_path / "run", "task=guess", "train.steps=2", "optim.lr=0.01")
    assert run(config)["temperature"] > 0.07
    assert read_export(tmp_path / "run").tensors["heads.temperature.value"] > 0.07
    shutil.rmtree(tmp_path / "run")
