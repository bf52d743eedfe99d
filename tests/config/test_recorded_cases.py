"""Overrides that people have tried (shared/cases/runs/ranges): what each means, or the one line that refuses it."""

import shlex
from pathlib import Path

import pytest

from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config, validate
from fiber.data.convert.writer import write_dataset
from fiber.data.shapes.world import WORLDS, generate
from fiber.errors import ConfigError

# What is no mistake: numbers as YAML 1.2 writes them, odd but possible choices, and what only the data can tell.
GOOD = {
    "", "pretrain.queue_size=7", "pretrain.itm_weight=0", "pretrain.itm_weight=0 train.zero_stage=3",
    "eval.rerank_k=0", "train.precision=fp16", "train.precision=bf16", "train.global_batch=1 train.micro_batch=1",
    "optim.lr=1e-4", "optim.lr=1E-4", "optim.lr=.001", "train.steps=1e3", "train.steps=1.5e3", "train.steps=010",
    "train.steps=0x10", "train.best=null", "init_from=None", "init_from=null", "init_from=~", "output=2024-06-01",
    "output=run_2024-06-01", "output=~/runs/x", "output=$HOME/x", "output=runs/a#b", "output=runs/a #b",
    "output=runs/ü ber", "output=C:\\runs\\x", "tracking.wandb=off", "finetune.augment=False",
    "finetune.augment=FALSE", "model.image.depths=[1,1,2,1]", "model.image.depths.2=4", "data.workers=1.0",
    "optim.warmup=2000", "optim.warmup=1", "train.ema=0.999", "pretrain.itc_only_steps=1000",
    "train.steps=5 ;; train.steps=6", "tokenizer=/nowhere", "tokenizer=FOLDER/shapes/tokenizer/tokenizer.json",
    "task=vqa", "task=pretraining", "data.train=[{path: FOLDER/shapes/train}]",
    "eval.rerank_k=0 'eval.data=[{path: FOLDER/shapes/val}]'",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cases")
    for split, count in (("train", 12), ("val", 4)):
        scenes = generate(WORLDS["easy"], split, count, seed=0)
        write_dataset(scenes, made / "shapes" / split, name="shapes", split=split, provenance="drawn", licence="none")
    return made


def cases(shared: Path) -> list[tuple[str, list[str]]]:
    """(the words as written, overrides) of both lists."""
    source = shared / "cases/runs/ranges"
    listed = [line.partition(" :: ")[2].strip() for line in (source / "c1.txt").read_text().splitlines()]
    found = [(words, shlex.split(words)) for words in listed]
    for line in (source / "conf_cases.txt").read_text().splitlines():
        found.append((line, line.split(" ;; ")))
    return found


def test_every_override_is_meant_or_refused(shared: Path, folder: Path) -> None:
    template = (shared / "cases/runs/tiny.yaml").read_text().replace("$CASES", str(folder))
    (folder / "tiny.yaml").write_text(template)
    accepted, messages = set(), {}
    for words, overrides in cases(shared):
        words = words.replace("$CASES", "FOLDER")
        given = [word.replace("$CASES", str(folder)) for word in overrides]
        world = 1 if "global_batch=1 " in words else 2
        try:
            validate(load_config(Stage1Config, folder / "tiny.yaml", ["output=runs/x", *given]), world)
            accepted.add(words)
        except ConfigError as error:
            messages[words] = str(error)
    unnoticed, refused = sorted(accepted - GOOD), {words: messages[words] for words in GOOD & set(messages)}
    assert not unnoticed
    assert not refused
    assert all("\n" not in message and len(message) < 400 for message in messages.values())
    for words, message in messages.items():
        key = words.split("=")[0].split(" ")[0].strip("-'")
        assert key.split(".")[0] in message, (words, message)
