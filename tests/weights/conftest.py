"""A tokenizer and a model small enough to build in milliseconds."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fiber.coarse.model import CoarseModel
from fiber.config.base import ImageTowerConfig, ModelConfig, TextTowerConfig
from fiber.config.stage1 import Stage1Config
from fiber.data.shapes.tokenizer import train_bpe
from fiber.tasks.coarse_model import build_model


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> PreTrainedTokenizerFast:
    return train_bpe(["a red circle left of a blue square", "two dogs"], 280, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def config() -> Stage1Config:
    return Stage1Config(
        output="unused",
        tokenizer="unused",
        image_size=64,
        max_text=16,
        model=ModelConfig(
            image=ImageTowerConfig(embed_dim=8, depths=(1, 1, 2, 1), heads=(1, 1, 2, 2), window=2, pretrained="a/b"),
            text=TextTowerConfig(width=16, layers=3, heads=2, intermediate=32),
            num_fused=2,
            head_width=16,
            init="fan_in",
        ),
    )


@pytest.fixture
def model(config, tokenizer) -> CoarseModel:
    """A model whose gates are open: every weight matters."""
    model = build_model(config, tokenizer).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.5)
    return model
