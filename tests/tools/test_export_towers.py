"""Towers taken out of a model: what other libraries, and a new model that begins with them, read from the files."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import RobertaModel

import fiber
from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.predict.image import CoarsePredictor
from fiber.weights.pretrained import load_pretrained_towers
from tiny_exports import MODEL, coarse_export, fine_export

REPO = Path(__file__).resolve().parents[2]
TOWERS = REPO / "src/fiber/data/shapes/towers"


@pytest.fixture
def export_towers(monkeypatch):
    """The tool, in this process."""
    monkeypatch.syspath_prepend(REPO / "tools")
    return importlib.import_module("export_towers").main


@pytest.fixture
def source(tmp_path, export_towers) -> CoarsePredictor:
    """A model with open gates; its towers lie in tmp_path/towers."""
    assert export_towers([str(coarse_export(tmp_path / "model")), str(tmp_path / "towers")]) == 0
    return fiber.load(tmp_path / "model")


def test_a_new_model_begins_with_the_towers_and_nothing_else(source, tmp_path):
    backbone = build_backbone(MODEL, len(source.tokenizer), 1, 12)
    initialise(backbone, MODEL.init, seed=1)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    where = {"image": str(tmp_path / "towers/image.safetensors"), "text": str(tmp_path / "towers/text")}
    reports = load_pretrained_towers(backbone, source.tokenizer, **where)
    assert [report.unused for report in reports.values()] == [[], []]
    theirs = source.model.backbone.state_dict()
    for name, tensor in backbone.state_dict().items():
        new = name.startswith(("fusion.", "image.stage_norms."))
        assert torch.equal(tensor, before[name] if new else theirs[name].half().float()), name


def test_transformers_reads_the_text_tower(source, tmp_path):
    options = {"add_pooling_layer": False, "dtype": torch.float32}
    roberta = RobertaModel.from_pretrained(tmp_path / "towers/text", **options).eval()
    ids = torch.randint(4, len(source.tokenizer), (3, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    backbone = source.model.backbone
    with torch.no_grad():
        ours = backbone.finish_text(backbone.text_prefix(ids, mask))
        torch.testing.assert_close(roberta(ids, attention_mask=mask).last_hidden_state, ours, atol=5e-3, rtol=5e-3)


def test_a_detector_has_no_last_norm_so_its_tower_gets_a_new_one(export_towers, tmp_path):
    assert export_towers([str(fine_export(tmp_path / "model")), str(tmp_path / "towers")]) == 0
    image = load_file(tmp_path / "towers/image.safetensors")
    assert torch.equal(image["norm.weight"], torch.ones(128, dtype=torch.float16))
    assert not image["norm.bias"].any()
    theirs = fiber.load(tmp_path / "model").model.backbone.image.state_dict()
    assert torch.equal(image["patch_embed.proj.weight"], theirs["patch_embed.proj.weight"].half())
    assert not any(name.startswith(("norm1.", "norm2.", "norm3.")) for name in image)


def test_what_is_no_model_is_one_line(export_towers, tmp_path, capsys):
    assert export_towers([str(tmp_path / "absent"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_the_towers_of_the_demo_are_as_small_as_promised_and_say_where_they_come_from():
    files = [path for path in TOWERS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    sizes = json.loads((TOWERS / "text/config.json").read_text())
    numbers = sum(tensor.numel() for tensor in load_file(TOWERS / "image.safetensors").values())
    assert (sizes["hidden_size"], sizes["num_hidden_layers"]) == (96, 5)
    assert numbers > 1e6
    assert "launch/shapes_towers.sh" in (TOWERS / "README.md").read_text()
