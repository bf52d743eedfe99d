"""From raw files to updates: every data set's folder is converted, and both stages train a few steps on its shards
wherever it has what they need. (The launcher and DeepSpeed have their own tests.)"""

import math
from pathlib import Path
from typing import Any

import pytest
import raw
import torch
from tiny_detector import LIMIT, tiny_detector

import make_shards
from fiber.backbone.build import build_backbone
from fiber.coarse.model import CoarseModel
from fiber.config.base import ImageTowerConfig, ModelConfig, TextTowerConfig
from fiber.config.stage1 import PretrainConfig
from fiber.data import records
from fiber.data.collate import collate
from fiber.data.loader import make_loader
from fiber.data.order import MixedStream, Source
from fiber.data.prompts import PromptBuilder
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shards import ShardSet
from fiber.errors import ShardError
from fiber.tasks.pretrain import PretrainSample, PretrainTask
from fiber.tasks.region_samples import RegionSample, check_set, collate_regions
from fiber.tasks.regions import GroundingTask

TEXTS = ("captions", "expressions", "questions", "hypotheses", "statements")
REGIONS = ("captions", "expressions", "boxes")
ONLY_STAGE_1 = {
    "coco_karpathy",
    "coco_plain",
    "flickr30k",
    "visual_genome_questions",
    "cc3m_img2dataset",
    "cc3m_tars",
    "cc3m_vilt",
    "sbu",
    "nocaps",
    "vqav2",
    "nlvr2",
    "snli_ve",
}
ONLY_STAGE_2 = {"coco_detection", "lvis", "objects365", "objects365_tsv", "odinw"}
STEPS = 3


@pytest.fixture(scope="module", params=sorted(raw.BUILDERS))
def shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Name and shard folder of each data set, converted from files as they are downloaded."""
    folder = tmp_path_factory.mktemp(request.param)
    made = raw.build(request.param, folder / "raw")
    make_shards.main(made.command(folder / "shards"))
    assert len(ShardSet(folder / "shards")) == made.samples > 0
    return request.param, folder / "shards"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_bpe(["a man with a red helmet on a dirt road, two dogs"], 300, tmp_path_factory.mktemp("tokenizer"))


def train(task: torch.nn.Module, stream: MixedStream, make_sample: Any, collate_samples: Any) -> list[float]:
    """Losses of a few updates."""
    batches = make_loader(
        stream, make_sample, collate_samples, micro_batch=2, accumulation=1, rank=0, world=1, workers=0,
        start_step=0, max_fault_share=1.0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-4)
    losses = []
    for step, batch in zip(range(STEPS), batches, strict=False):
        total = sum(task(batch | {"step": step})[0].values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses


def test_stage_1_trains_on_its_texts(shards: tuple[str, Path], tokenizer: Any) -> None:
    name, folder = shards
    found = ShardSet(folder)
    fields = [field for field in TEXTS if found.count(field) >= 2]
    if name in ONLY_STAGE_2:
        assert not fields
        pytest.skip("a detection set has no texts")
    assert fields
    image = ImageTowerConfig(embed_dim=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4), window=2, drop_path=0.0)
    text = TextTowerConfig(width=16, layers=3, heads=2, intermediate=32)
    config = ModelConfig(image=image, text=text, num_fused=2, head_width=16)
    backbone = build_backbone(config, len(tokenizer), tokenizer.pad_token_id, 24)
    task = PretrainTask(CoarseModel(backbone, head_width=16, vocab_size=len(tokenizer)), PretrainConfig(queue_size=4))
    for field in fields:
        stream = MixedStream([Source(found, field)], seed=0, global_batch=2)
        losses = train(task, stream, PretrainSample(tokenizer, 64, 24), collate)
        assert len(losses) == STEPS
        assert all(map(math.isfinite, losses)), (field, losses)


def test_stage_2_trains_on_its_regions(shards: tuple[str, Path], tokenizer: Any) -> None:
    name, folder = shards
    found, fields = ShardSet(folder), []
    for field in REGIONS:
        if found.count(field) < 2:
            continue
        try:
            check_set(found, field)
        except ShardError:
            continue
        fields.append(field)
    if name in ONLY_STAGE_1:
        assert not fields
        pytest.skip("its annotations have no boxes")
    assert fields
    task = GroundingTask(tiny_detector(vocab=len(tokenizer)))
    sample = RegionSample(PromptBuilder(tokenizer, LIMIT), short_sides=(64,), max_side=96)
    for field in fields:
        boxes = sum(len(found.record(i).get("boxes", ())) for i in range(len(found)))
        assert boxes or records.count(found.record(0), field)
        losses = train(task, MixedStream([Source(found, field)], seed=0, global_batch=2), sample, collate_regions)
        assert len(losses) == STEPS
        assert all(map(math.isfinite, losses)), (field, losses)
