"""What both entrypoints share."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from fiber.coarse.build import build_task
from fiber.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from fiber.config_stage1 import Stage1Config
from fiber.data.text import load_tokenizer, train_bpe
from fiber.training import run


@pytest.fixture
def text_tower(tmp_path: Path) -> Path:
    """A folder with a tokenizer and a RoBERTa of random weights, as `roberta-base` is one."""
    folder = tmp_path / "roberta"
    tokenizer = train_bpe(["a red circle left of a blue square"], 270, folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=514, type_vocab_size=1, pad_token_id=1,
        layer_norm_eps=1e-5, **sizes,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    return folder


def test_towers_start_from_their_files_once(tmp_path: Path, text_tower: Path) -> None:
    text = TextTowerConfig(width=16, layers=3, heads=2, intermediate=32, pretrained=str(text_tower))
    image = ImageTowerConfig(embed_dim=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4), window=2)
    model = ModelConfig(image=image, text=text, num_fused=2, head_width=16)
    config = Stage1Config(output=str(tmp_path / "run"), tokenizer=str(text_tower), max_text=24, model=model)
    tokenizer = load_tokenizer(text_tower)
    expected = RobertaModel.from_pretrained(text_tower).encoder.layer[2].output.dense.weight

    task = build_task(config, tokenizer)
    run.start_towers(config, task.model.backbone, tokenizer)
    assert torch.equal(task.model.backbone.text.layers[2].fc2.weight, expected)

    def untouched(config: Stage1Config) -> bool:
        task = build_task(config, tokenizer)
        run.start_towers(config, task.model.backbone, tokenizer)
        return not torch.equal(task.model.backbone.text.layers[2].fc2.weight, expected)

    assert untouched(replace(config, init_from="elsewhere"))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step_000001")
    assert untouched(config)
