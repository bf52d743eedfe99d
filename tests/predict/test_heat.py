"""Where words look: against the attention computed by hand, the geometry, and closed gates."""

import numpy as np
import pytest
import torch
from PIL import Image

import fiber
from fiber.backbone.fusion import TextToImage
from fiber.predict.base import TaskError
from fiber.predict.heat import draw_heat, heat_sheet, overlay, word_heat
from tiny_exports import coarse_export, fine_export


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("models")
    return {
        "coarse": fiber.load(coarse_export(folder / "c"), device="cpu"),
        "fine": fiber.load(fine_export(folder / "f"), device="cpu"),
    }


@pytest.mark.parametrize("kind", ["coarse", "fine"])
def test_every_word_has_a_map_of_the_upright_image(kind: str, models: dict) -> None:
    text = "A red circle, left of (two) dogs."
    found = word_heat(models[kind], Image.new("RGB", (90, 60), "red"), text)
    assert [one.word for one in found] == ["A", "red", "circle", "left", "of", "two", "dogs"][: len(found)]
    assert len(found) >= 4
    assert all(text[slice(*one.span)] == one.word for one in found)
    rows, columns = (16, 16) if kind == "coarse" else (16, 24)  # 64 x 64 px; 64 x 96 px, four a place
    for one in found:
        assert one.heat.shape == (rows, columns)
        assert one.heat.sum() == pytest.approx(1, abs=1e-4)
        assert (one.heat >= 0).all()
    sheet = draw_heat(Image.new("RGB", (90, 60), "red"), found)
    assert sheet.width > 300


def test_the_map_is_the_attention_of_the_layers(models: dict) -> None:
    """One word of one token, all layers but one closed: the softmax of that layer, written out."""
    model = models["coarse"].model
    layers = [part for part in model.modules() if isinstance(part, TextToImage)]
    gates = [layer.gate.clone() for layer in layers]
    seen = {}
    hook = layers[-1].register_forward_hook(lambda layer, inputs, _: seen.update(attended=inputs[0], image=inputs[1]))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    with torch.no_grad():
        for layer in layers[:-1]:
            layer.gate.zero_()
        (one,) = word_heat(models["coarse"], image, "a")
        layer, (key, _) = layers[-1], seen["image"]
        query = layer.query(seen["attended"])[0, 1]  # of the word, after <s>
        width, rows = len(query) // layer.heads, []
        for head in range(layer.heads):
            logits = key[0, head] @ query[head * width : (head + 1) * width] / width**0.5
            rows.append(logits.softmax(0))
        expected = torch.stack(rows).mean(0).numpy()
        for layer, gate in zip(layers, gates, strict=True):
            layer.gate.copy_(gate)
    hook.remove()
    side = round(len(expected) ** 0.5)
    cells = one.heat.reshape(side, 16 // side, side, 16 // side).mean((1, 3)).reshape(-1)
    assert cells.argmax() == expected.argmax()
    assert np.corrcoef(cells, expected)[0, 1] > 0.8  # finer grid, bilinear


def test_closed_gates_look_nowhere_in_particular(models: dict) -> None:
    layers = [part for part in models["coarse"].model.modules() if isinstance(part, TextToImage)]
    gates = [layer.gate.clone() for layer in layers]
    with torch.no_grad():
        for layer in layers:
            layer.gate.zero_()
        (one,) = word_heat(models["coarse"], Image.new("RGB", (64, 64)), "dogs")
        with pytest.raises(TaskError, match="gates of this model's cross-attention are closed"):
            heat_sheet(models["coarse"], Image.new("RGB", (64, 64)), "dogs")
        for layer, gate in zip(layers, gates, strict=True):
            layer.gate.copy_(gate)
    assert one.heat == pytest.approx(np.full((16, 16), 1 / 256), abs=1e-6)


def test_the_map_of_a_phrase_is_the_mean_over_its_tokens(models: dict) -> None:
    predictor, image = models["fine"], Image.fromarray(np.eye(64, dtype=np.uint8) * 255)
    text = "a red dog"
    red, dog, phrase = word_heat(predictor, image, text, [(2, 5), (5, 9), (2, 9)])
    assert (phrase.word, phrase.span) == ("red dog", (2, 9))
    places = predictor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    reds, dogs = (sum(a <= start < end <= b for start, end in places) for a, b in ((2, 5), (5, 9)))
    assert reds
    assert dogs
    np.testing.assert_allclose(phrase.heat, (reds * red.heat + dogs * dog.heat) / (reds + dogs), atol=1e-7)
    assert heat_sheet(predictor, image, text, [(2, 9)]).width == 2 * (320 + 8)  # the image and one phrase


def test_light_falls_where_it_is_looked_at() -> None:
    heat = np.zeros((2, 4), np.float32)
    heat[0, 3] = 1
    shown = np.asarray(overlay(Image.new("RGB", (40, 20), "white"), heat))
    assert shown[2, 37].min() > 250
    assert shown[17, 3].max() < 70
    with pytest.raises(ValueError, match="empty"):
        word_heat(None, Image.new("RGB", (4, 4)), " ")
