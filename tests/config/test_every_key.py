"""No key without effect: a step of training and an evaluation of every kind of run reads each of them.

A read counts where it comes from outside `fiber.config` (which reads all keys to check and to save them).
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fiber import stage1_coarse, stage2_fine
from fiber.config.command import Command
from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config
from fiber.training.watchdog import Watchdog

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))
from runs import IMAGE_TASK, REGION_TASK

STEP = ["optim.schedule=step", "optim.milestones=[0.5]", "optim.decay_drop=0.5", "optim.layer_decay=0.9"]
PLATEAU = ["optim.schedule=plateau", "train.best=r_mean", "train.stop_after=5", "eval.every=1", "train.ema=0.5"]
RUNS = [
    (Stage1Config, "train", ["task=pretrain", "eval.rerank_k=2", *PLATEAU]),
    (Stage1Config, "train", ["task=vqa", "data.train.0.field=questions", "tuning.mode=lora", *STEP]),
    (Stage1Config, "train", ["task=retrieval_itm", "finetune.itc_weight=1", "finetune.negatives=hard"]),
    (Stage1Config, "train", ["task=caption", "caption.objective=gold", "caption.max_new_tokens=3", "caption.beam=2"]),
    (Stage1Config, "train", ["task=caption", "caption.objective=cider", "caption.max_new_tokens=3"]),
    (Stage2Config, "train", ["tuning.mode=lora", "regions.chunk_classes=9", "regions.figures=1"]),
    (Stage2Config, "train", [*STEP, "regions.frozen_stages=1", "tuning.mode=full"]),
    (Stage2Config, "train", ["train.best=ap", "train.stop_after=3", "eval.every=1", "optim.schedule=plateau"]),
]


def keys(kind: type) -> Iterator[tuple[type, str]]:
    """(section, key) of a schema, all sections in it included."""
    import typing

    for name, hint in typing.get_type_hints(kind).items():
        inner = [h for h in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(h)]
        yield kind, name
        for section in inner:
            yield from keys(section)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", [Stage1Config, Stage2Config])
def test_every_key_is_read(kind: type, task_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, read = set(keys(kind)), set()
    for section in {section for section, _ in known}:
        original = section.__getattribute__

        def recorded(self: Any, name: str, section: type = section, original: Any = original) -> Any:
            if (section, name) in known and "/fiber/config/" not in sys._getframe(1).f_code.co_filename:
                read.add((section, name))
            return original(self, name)

        monkeypatch.setattr(section, "__getattribute__", recorded)
    for number, (schema, mode, overrides) in enumerate(RUNS):
        if schema is not kind:
            continue
        fine = kind is Stage2Config
        tree = json.loads(json.dumps(REGION_TASK if fine else IMAGE_TASK))
        source = {"path": str(task_sets / "train"), "field": "boxes" if fine else "captions"}
        tree |= {"output": str(tmp_path / str(number)), "tokenizer": str(task_sets / "tokenizer")}
        tree["data"] |= {"train": [source | {"weight": 1.0}]}
        tree["train"] |= {"steps": 1, "micro_batch": 4, "accumulation": 1, "global_batch": 4}
        tree["eval"] = {"data": [source], "batch": 4}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
        if "data.train.0.field=questions" in overrides:
            overrides = [*overrides, "eval.data.0.field=questions"]
        config = load_config(schema, tmp_path / "run.yaml", overrides)
        watchdog = Watchdog(60.0)
        (stage2_fine.stage2 if fine else stage1_coarse.stage1)(Command(config, mode), watchdog)
        watchdog.close()
    unread = sorted(f"{section.__name__}.{name}" for section, name in known - read)
    assert not unread, f"keys that no run reads: {', '.join(unread)}"
