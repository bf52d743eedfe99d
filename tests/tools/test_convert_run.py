"""Converting a run gives what its training exported, bit for bit, for every task and every way of tuning."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fiber import stage1_coarse, stage2_fine
from fiber.cli.convert import evaluation_of
from fiber.config.command import Command
from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config
from fiber.errors import WeightsError
from fiber.tasks.table import TABLE
from fiber.training.watchdog import Watchdog

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))
from runs import IMAGE_TASK, REGION_TASK

from convert_checkpoint import main

IMAGE_TASKS = [row.name for row in TABLE if row.stage == "coarse"]
CASES = [
    *((name, []) for name in IMAGE_TASKS),
    *(("vqa", [f"tuning.mode={mode}"]) for mode in ("frozen_towers", "lora")),
    ("pretrain", ["tuning.mode=lora", "optim.lr=1e-2"]),
    ("caption", ["caption.objective=gold"]),
    *(("regions", [f"tuning.mode={mode}"]) for mode in ("full", "frozen_towers", "lora", "linear", "prompt")),
    ("regions", ["train.ema=0.5"]),
]


def trained(task: str, overrides: list[str], sets: Path, folder: Path, evaluated: bool = False) -> Path:
    """FOLDER/run: two steps of a task, with its export; with `evaluated` also what it was trained on."""
    run, fine = folder / "run", task == "regions"
    tree = json.loads(json.dumps(REGION_TASK if fine else IMAGE_TASK))
    field = next(row.fields[-1 if fine else 0] for row in TABLE if row.name == task)
    source = {"path": str(sets / {"nlvr2": "pairs", "classification": "classes"}.get(task, "train")), "field": field}
    tree |= {"output": str(run), "tokenizer": str(sets / "tokenizer")} | ({} if fine else {"task": task})
    tree["data"] |= {"train": [source]}
    tree["train"] |= {"steps": 2, "micro_batch": 4, "accumulation": 1, "global_batch": 4}
    tree["eval"] = {"data": [source]} if evaluated else {}
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(Stage2Config if fine else Stage1Config, folder / "run.yaml", overrides)
    watchdog = Watchdog(60.0)
    (stage2_fine.stage2 if fine else stage1_coarse.stage1)(Command(config, "train"), watchdog)
    watchdog.close()
    return run


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("task", "overrides"), CASES, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_converted_is_exported(task: str, overrides: list[str], task_sets: Path, tmp_path: Path) -> None:
    run = trained(task, overrides, task_sets, tmp_path)
    assert main([str(run), str(tmp_path / "converted")]) == 0
    exported, converted = (
        load_file(folder / "model.safetensors") for folder in (run / "export", tmp_path / "converted")
    )
    assert exported.keys() == converted.keys()
    assert not any("lora_" in name for name in converted)
    assert all(torch.equal(tensor, converted[name]) for name, tensor in exported.items())
    for name in ("config.json", "answers.json", "categories.json"):
        files = [folder / name for folder in (run / "export", tmp_path / "converted")]
        assert files[0].exists() == files[1].exists(), name
        if files[0].exists():
            assert files[0].read_text() == files[1].read_text(), name


@pytest.mark.usefixtures("alone")
def test_what_the_evaluation_has_found_comes_along(task_sets: Path, tmp_path: Path) -> None:
    """The calibrated threshold, which `fiber detect` goes by, and the figures of the card."""
    run = trained("regions", [], task_sets, tmp_path, evaluated=True)
    assert main([str(run), str(tmp_path / "converted" / "run")]) == 0
    for name in ("config.json", "README.md"):
        exported, converted = ((folder / name).read_text() for folder in (run / "export", tmp_path / "converted/run"))
        assert exported == converted
    assert json.loads((run / "export" / "config.json").read_text())["thresholds"]["detect"] > 0
    assert "| ap50 |" in exported


def test_the_evaluation_of_a_checkpoint_is_its_own(tmp_path: Path) -> None:
    """One of an earlier step says nothing of these weights; a damaged record is one line."""
    (tmp_path / "state.json").write_text('{"step": 4, "state": {"record": {"evaluated": 2, "newest": {"ap": 0.1}}}}')
    assert evaluation_of(tmp_path) == (4, {})
    (tmp_path / "evaluated.json").write_text('{"evaluated": 4, "newest": {"ap": 0.2}}')
    assert evaluation_of(tmp_path) == (4, {"ap": 0.2})
    for text in ("", "[]", '{"evaluated": 4}', '{"evaluated": 4, "newest": 3}'):
        (tmp_path / "evaluated.json").write_text(text)
        with pytest.raises(WeightsError, match=rf"^{tmp_path} has a damaged state\.json or evaluated\.json"):
            evaluation_of(tmp_path)
