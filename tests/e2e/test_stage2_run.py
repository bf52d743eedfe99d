"""Stage 2 as a user runs it: from a stage-1 export, interrupted by SIGKILL, evaluated."""

import json
from pathlib import Path

import pytest
import yaml
from launcher import REPO, Job, losses, metrics

from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.coarse.model import CoarseModel
from fiber.config.base import ModelConfig
from fiber.config.loading import load_config
from fiber.config.stage2 import Stage2Config
from fiber.data.convert.writer import ShardWriter, write_dataset
from fiber.data.records import Sample
from fiber.data.shapes.world import WORLDS, categories, generate
from fiber.data.text import load_tokenizer
from fiber.weights.export import read_export, write_export
from fiber.weights.export_config import ExportConfig

STAGE2 = REPO / "src" / "fiber" / "stage2_fine.py"
STEPS = 12
FIGURES = {"grounding_r1", "class_agnostic_r1", "merged_r1", "ap50", "ap"}


@pytest.fixture(scope="module")
def fine_config(shapes: Path) -> Path:
    """Two ranks, a mix of captions and class labels, EMA, dropout, and a stage-1 export to start from. One scene has
    a box without area."""
    samples: list[Sample] = list(generate(WORLDS["easy"], "train", 60, seed=1))
    samples[7].record["boxes"][0]["box"][2] = -3.0
    world = {"categories": categories(WORLDS["easy"]), "provenance": "drawn", "licence": "none"}
    with ShardWriter(shapes / "regions", "regions", max_samples=20) as writer:
        for sample in samples:
            writer.add(sample)
    (shapes / "regions" / "dataset.json").write_text(
        json.dumps({"name": "regions", "split": "train", "annotations": {}, "samples": 60, "answers": []} | world)
    )
    test = generate(WORLDS["easy"], "test", 10, seed=1)
    write_dataset(test, shapes / "regions_test", name="test", split="test", **world)
    tree = {
        "output": str(shapes / "fine"),
        "init_from": str(shapes / "coarse_export"),
        "tokenizer": str(shapes / "tokenizer"),
        "max_text": 48,
        "model": {
            "image": {"embed_dim": 16, "depths": [1, 1, 2, 1], "heads": [1, 2, 2, 4], "window": 2, "drop_path": 0.1},
            "text": {"width": 32, "layers": 3, "heads": 2, "intermediate": 64, "dropout": 0.1},
            "num_fused": 2,
            "init": "fan_in",
        },
        "detector": {
            "channels": 16,
            "head_channels": 16,
            "head_blocks": 1,
            "groups": 4,
            "anchor_sizes": [24, 48, 96],
            "strides": [8, 16, 32],
            "drop_block": 0.3,
        },
        "regions": {"short_sides": [48, 64], "test_side": 64, "max_side": 64, "max_negatives": 4, "frozen_stages": 1},
        "data": {
            "train": [
                {"path": str(shapes / "regions"), "field": "captions", "weight": 2},
                {"path": str(shapes / "regions"), "field": "boxes", "weight": 1},
                {"path": str(shapes / "regions"), "field": "expressions", "weight": 1},
            ],
            "workers": 1,
        },
        "optim": {"lr": 1e-3, "warmup": 2, "clip": 1.0, "cross_modal_multiplier": 1, "gate_multiplier": 20},
        "train": {
            "steps": STEPS,
            "global_batch": 16,
            "micro_batch": 8,
            "log_every": 1,
            "save_every": 4,
            "keep": 3,
            "hang_timeout_s": 60,
            "ema": 0.9,
        },
        "eval": {
            "data": [
                {"path": str(shapes / "regions_test"), "field": "captions"},
                {"path": str(shapes / "regions_test"), "field": "boxes"},
            ],
            "batch": 4,
        },
    }
    path = shapes / "fine.yaml"
    path.write_text(yaml.safe_dump(tree))
    config, tokenizer = load_config(Stage2Config, path), load_tokenizer(shapes / "tokenizer")
    model = CoarseModel(build_backbone(config.model, len(tokenizer), 1, 24), head_width=32, vocab_size=len(tokenizer))
    initialise(model, "fan_in", seed=5)
    about = ExportConfig("coarse", ModelConfig(**vars(config.model)), len(tokenizer), 1, image_size=64, max_text=24)
    write_export(shapes / "coarse_export", model.state_dict(), about, tokenizer)
    return path


def test_a_killed_run_equals_a_whole_one(fine_config: Path, shapes: Path, tmp_path: Path) -> None:
    """Loss for loss and byte for byte, averaged weights, optimizer, figures included; what a run leaves behind; and
    the same figures from `--mode eval` on one rank."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with Job(STAGE2, "--config", fine_config, f"output={whole}", folder=tmp_path / "a") as job:
        output = job.succeed()
    assert "Traceback" not in output
    assert "Warning" not in output
    assert "new " in output
    assert "stage_norms" in output  # the report of what came from stage 1
    with Job(STAGE2, "--config", fine_config, f"output={killed}", folder=tmp_path / "b") as job:
        job.until(lambda: 6 in losses(killed))
    assert max(losses(killed)) < STEPS - 1
    with Job(STAGE2, "--config", fine_config, f"output={killed}", "data.workers=2", folder=tmp_path / "b") as job:
        assert "going on from" in job.succeed()

    assert losses(killed) == losses(whole)
    assert set(losses(whole)) == set(range(STEPS))
    for name in ("model", "optimizer", "ema"):
        path = Path("checkpoints", f"step_{STEPS:06d}", f"{name}.safetensors")
        assert (killed / path).read_bytes() == (whole / path).read_bytes(), name
    lines = metrics(whole)
    assert metrics(killed)[-1] == lines[-1]
    figures = {key.removeprefix("eval/"): value for key, value in lines[-1].items() if key.startswith("eval/")}
    assert set(figures) >= FIGURES
    counted = [line for line in lines if "loss/total" in line][-1]
    assert counted["faults/box_without_area"] > 0
    faults = [json.loads(line) for line in (whole / "faults.jsonl").read_text().splitlines()]
    assert {(fault["key"], fault["reason"]) for fault in faults} == {("easy-train-1-000007", "box_without_area")}
    assert (killed / "faults.jsonl").read_text() == (whole / "faults.jsonl").read_text()
    assert {"lr/base", "lr/gate", "gate/i2t/0", "assignment/positives_per_image"} <= set(counted)

    export = read_export(whole / "export")
    assert export.categories == [category["name"] for category in categories(WORLDS["easy"])]
    with Job(
        STAGE2, "--config", fine_config, "--mode", "eval", f"output={whole}", "train.micro_batch=16",
        folder=tmp_path / "c", ranks=1,
    ) as job:  # fmt: skip
        printed = json.loads(next(line for line in job.succeed().splitlines() if line.startswith('{"step"')))
    assert printed == pytest.approx({"step": STEPS} | figures, abs=1e-6)
