"""Converting a run gives what its training exported, bit for bit, for every task and every way of tuning."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fiber import stage1_coarse, stage2_fine
from fiber.config.command import Command
from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config
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


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("task", "overrides"), CASES, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_converted_is_exported(task: str, overrides: list[str], task_sets: Path, tmp_path: Path) -> None:
    run, fine = tmp_path / "run", task == "regions"
    tree = json.loads(json.dumps(REGION_TASK if fine else IMAGE_TASK))
    field = next(row.fields[-1 if fine else 0] for row in TABLE if row.name == task)
    path = task_sets / {"nlvr2": "pairs", "classification": "classes"}.get(task, "train")
    tree |= {"output": str(run), "tokenizer": str(task_sets / "tokenizer")} | ({} if fine else {"task": task})
    tree["data"] |= {"train": [{"path": str(path), "field": field}]}
    tree["train"] |= {"steps": 2, "micro_batch": 4, "accumulation": 1, "global_batch": 4}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(Stage2Config if fine else Stage1Config, tmp_path / "run.yaml", overrides)
    watchdog = Watchdog(60.0)
    (stage2_fine.stage2 if fine else stage1_coarse.stage1)(Command(config, "train"), watchdog)
    watchdog.close()

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
