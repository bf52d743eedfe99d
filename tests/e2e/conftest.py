"""A shapes data set and a tiny model for launcher tests, made once a session."""

from pathlib import Path

import pytest
import yaml

from fiber.data.convert.writer import ShardWriter
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shapes.world import WORLDS, generate


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `train` (4 shards of 24 scenes), `val` (12 scenes) and a `tokenizer`."""
    folder, world = tmp_path_factory.mktemp("shapes"), WORLDS["easy"]
    texts = []
    for split, count in (("train", 96), ("val", 12)):
        with ShardWriter(folder / split, split, max_samples=24) as writer:
            for sample in generate(world, split, count, seed=0):
                texts += [caption["text"] for caption in sample.record["captions"]]
                writer.add(sample)
    train_bpe(texts, 400, folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def config(shapes: Path) -> Path:
    """A stage-1 configuration that two ranks train in a second or two; dropout and drop-path are off, so that the
    losses do not depend on the number of ranks."""
    path = shapes / "tiny.yaml"
    tree = {
        "output": str(shapes / "run"),
        "tokenizer": str(shapes / "tokenizer"),
        "image_size": 64,
        "max_text": 24,
        "model": {
            "image": {"embed_dim": 16, "depths": [1, 1, 2, 1], "heads": [1, 2, 2, 4], "window": 2, "drop_path": 0.0},
            "text": {"width": 32, "layers": 3, "heads": 2, "intermediate": 64, "dropout": 0.0},
            "num_fused": 2,
            "head_width": 32,
        },
        "pretrain": {"queue_size": 16, "gather_gradient": True},
        "data": {"train": [{"path": str(shapes / "train")}], "window_shards": 2, "workers": 1},
        "optim": {"lr": 1e-3, "warmup": 2, "clip": 1.0},
        "train": {
            "steps": 20,
            "global_batch": 8,
            "micro_batch": 4,
            "log_every": 1,
            "save_every": 8,
            "hang_timeout_s": 60,
        },
        "eval": {"data": [{"path": str(shapes / "val")}], "batch": 8, "rerank_k": 4},
    }
    path.write_text(yaml.safe_dump(tree))
    return path
