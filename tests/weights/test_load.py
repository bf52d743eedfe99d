"""One loader, one report: resizing against the recorded reference, and refusal of what does not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fiber.backbone.fusion import FusionBackbone
from fiber.backbone.image import SwinTower
from fiber.backbone.text import RobertaTower
from fiber.coarse.model import CoarseModel
from fiber.errors import WeightsError
from fiber.fine.model import FiberDetector
from fiber.weights.load import NEW_IN_FINE, load_weights, resize_bias_table

IMAGE = {"embed_dim": 8, "depths": (1, 2), "heads": (1, 2)}
TEXT = {"width": 16, "layers": 2, "heads": 2, "intermediate": 32}


def coarse(window=4, vocab=11, positions=20, classifiers=None) -> CoarseModel:
    text = RobertaTower(vocab_size=vocab, max_positions=positions, **TEXT)
    backbone = FusionBackbone(SwinTower(window=window, **IMAGE), text, num_fused=1)
    return CoarseModel(backbone, head_width=16, vocab_size=vocab, classifiers=classifiers)


@pytest.mark.parametrize("change", ["128_96", "96_128", "96_192", "384_576", "224_384"])
@pytest.mark.parametrize("heads", ["2heads", "3heads"])
def test_bias_tables_resize_as_in_the_release(shared, change, heads):
    recorded = load_file(shared / "parity/coarse_a.io.safetensors")
    window = int(change.split("_")[1]) // 32
    resized = resize_bias_table(recorded[f"resize.{change}.before_{heads}"], window)
    torch.testing.assert_close(resized, recorded[f"resize.{change}.after_{heads}"], atol=1e-6, rtol=0)


def test_a_model_loads_itself_completely():
    model, other = coarse(), coarse()
    report = load_weights(other, model.state_dict())
    assert (report.new, report.unused, report.resized) == ([], [], {})
    assert len(report.loaded) == len(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_resolution_and_text_length_change_and_come_back():
    small, large, back = coarse(4, positions=20), coarse(6, positions=30), coarse(4, positions=20)
    report = load_weights(large, small.state_dict())
    assert len(report.resized) == 4  # three window tables, one position table
    name = "backbone.text.embeddings.position.weight"
    assert torch.equal(large.state_dict()[name][:20], small.state_dict()[name])
    assert "first 20 kept" in report.resized[name]
    assert not load_weights(back, large.state_dict()).new
    assert torch.equal(back.state_dict()[name], small.state_dict()[name])


def test_vocabulary_rows_follow_their_tokens():
    old, new = coarse(vocab=4), coarse(vocab=5)
    before = new.state_dict()["heads.mlm.decoder.weight"].clone()
    words = {"a": 0, "b": 1, "c": 2, "d": 3}, {"c": 0, "x": 1, "a": 2, "y": 3, "d": 4}
    with pytest.raises(WeightsError, match="vocabulary"):
        load_weights(new, old.state_dict())
    load_weights(new, old.state_dict(), vocabulary=words)
    for name in ("backbone.text.embeddings.word.weight", "heads.mlm.decoder.weight", "heads.mlm.decoder.bias"):
        assert torch.equal(new.state_dict()[name][[0, 2, 4]], old.state_dict()[name][[2, 0, 3]])
    assert torch.equal(new.state_dict()["heads.mlm.decoder.weight"][[1, 3]], before[[1, 3]])


def test_nothing_is_copied_when_something_unexpected_stays_new():
    model, source = coarse(classifiers={"vqa": 3}), coarse().state_dict()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"heads\.classifiers"):
        load_weights(model, source)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    report = load_weights(model, source, allow_new=("heads.classifiers.*",))
    assert len(report.new) == 6
    assert "new          6" in report.table()
    share = sum(model.state_dict()[n].numel() for n in report.new) / sum(t.numel() for t in before.values())
    assert load_weights(model, source, max_untouched=share + 1e-9).untouched == pytest.approx(share)


def test_wrong_names_and_shapes_are_named():
    model = coarse(classifiers={"vqa": 3})
    with pytest.raises(WeightsError, match="unused"):
        load_weights(model, {f"model.{name}": tensor for name, tensor in model.state_dict().items()})
    wrong = model.state_dict() | {"heads.itm.weight": torch.zeros(3, 32)}
    with pytest.raises(WeightsError, match=r"heads\.itm\.weight: file \(3, 32\), model \(2, 32\)"):
        load_weights(model, wrong)
    answers = coarse(classifiers={"vqa": 5}).state_dict()  # another answer list: the last layer starts new
    report = load_weights(model, answers, allow_new=("heads.classifiers.vqa.3.*",))
    assert report.new == ["heads.classifiers.vqa.3.weight", "heads.classifiers.vqa.3.bias"]


def test_unused_tensors_are_reported_not_lost():
    report = load_weights(nn.Linear(2, 3), {"weight": torch.ones(3, 2), "bias": torch.ones(3), "old": torch.ones(1)})
    assert report.unused == ["old"]
    assert json.loads(json.dumps(report.resized)) == {}


@pytest.mark.parametrize("query_norm", [False, True])
def test_an_image_level_model_starts_a_detector(query_norm):
    source = coarse(window=4, positions=20)
    text = RobertaTower(vocab_size=11, max_positions=30, **TEXT)
    image = SwinTower(window=6, padded=True, stage_norms=True, **IMAGE)
    backbone = FusionBackbone(image, text, 1, query_norm=query_norm, last_text_norm=True)
    levels = {"anchor_sizes": (64, 128), "strides": (8, 16)}
    detector = FiberDetector(backbone, channels=8, head_channels=8, head_blocks=1, groups=2, **levels)
    report = load_weights(detector, source.state_dict(), allow_new=NEW_IN_FINE)
    assert {name.split(".")[0] for name in report.new if not name.startswith("backbone.")} == {"fpn", "head"}
    assert [n for n in report.new if n.startswith("backbone.")] == [
        "backbone.image.stage_norms.0.weight",
        "backbone.image.stage_norms.0.bias",
    ]
    unused = {name for name in report.unused if not name.startswith("heads.")}
    query = set() if query_norm else {f"backbone.fusion.image_to_text.0.norm.{end}" for end in ("weight", "bias")}
    assert unused == {"backbone.image.norm.weight", "backbone.image.norm.bias"} | query
    assert len(report.resized) == 4  # window tables and positions
    with pytest.raises(WeightsError, match="would stay at their initial values"):
        load_weights(detector, source.state_dict())
