"""A detector that has learned nothing, as an export to start from: small enough to train in seconds."""

from pathlib import Path
from typing import Any

import yaml

from fiber.config.loading import load_config
from fiber.config.stage2 import Stage2Config
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.text import load_tokenizer
from fiber.tasks.regions import build_module, export
from fiber.weights.export import write_run_export

MODEL = {
    "image": {"embed_dim": 16, "depths": [1, 1, 2, 1], "heads": [1, 2, 2, 4], "window": 4, "drop_path": 0.0},
    "text": {"width": 32, "layers": 3, "heads": 2, "intermediate": 64, "dropout": 0.0},
    "num_fused": 2,
    "init": "fan_in",
}
HEAD = {"channels": 32, "head_channels": 32, "head_blocks": 1, "groups": 8, "drop_block": 0.0, "log_scale": -2.5}
LEVELS = {"anchor_sizes": [24, 48, 96], "strides": [8, 16, 32]}


def write_detector(folder: Path, texts: list[str], vocabulary: int, **settings: Any) -> Path:
    """An export in `folder`/export; `settings` of Stage2Config, which is left in `folder`/start.yaml."""
    train_bpe(texts, vocabulary, folder / "tokenizer")
    tree = {"output": str(folder), "tokenizer": str(folder / "tokenizer"), "model": MODEL, "detector": HEAD | LEVELS}
    (folder / "start.yaml").write_text(yaml.safe_dump(tree | settings))
    config = load_config(Stage2Config, folder / "start.yaml")
    tokenizer = load_tokenizer(config.tokenizer)
    task = build_module(config, tokenizer)
    write_run_export(config, export(config, tokenizer, task, task.state_dict()), {})
    return folder / "export"
