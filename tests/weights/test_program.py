"""Exported programs compute what the models compute, on inputs of their own, without this project's code."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fiber
from fiber.errors import WeightsError
from fiber.weights.export import read_export
from fiber.weights.program import export_onnx, largest_difference, write_program
from tiny_exports import coarse_export, fine_export


@pytest.fixture(scope="module")
def dual(tmp_path_factory):
    """An export at image level and its program."""
    folder = tmp_path_factory.mktemp("dual")
    export = coarse_export(folder / "e")
    assert write_program(read_export(export), folder / "dual.pt2") < 1e-4
    return export, folder / "dual.pt2"


@pytest.mark.parametrize("texts", [["two dogs"], ["a", "two red dogs", "dogs"]])
def test_the_dual_encoder_program_gives_the_features(dual, texts):
    """Of any number of images, with texts of any length."""
    export, program = dual
    run, predictor = torch.export.load(program).module(), fiber.load(export, device="cpu")
    ids = torch.tensor(predictor.tokenizer(texts, padding=True).input_ids)
    image, text = run(torch.full((len(texts), 3, 64, 64), 200, dtype=torch.uint8), ids, (ids != 1).long())
    grey = Image.new("RGB", (64, 64), (200, 200, 200))
    torch.testing.assert_close(image, predictor.embed_images([grey] * len(texts)), atol=1e-5, rtol=0)
    torch.testing.assert_close(text, predictor.embed_texts(texts), atol=1e-5, rtol=0)


def test_the_detector_program_gives_the_outputs_of_the_head_at_its_size(tmp_path):
    export = read_export(fine_export(tmp_path / "e", anchor_sizes=(64, 128, 256), strides=(8, 16, 32)))
    assert write_program(export, tmp_path / "detector.pt2", (64, 96)) < 1e-4
    run = torch.export.load(tmp_path / "detector.pt2").module()
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    ids = torch.randint(4, 200, (1, 20))
    sizes, mask = torch.tensor([[60, 90]]), torch.ones_like(ids)
    model = fiber.load(tmp_path / "e", device="cpu").model
    tokens, deltas, centerness, anchors = run(images, sizes, ids, mask)
    output, places = model(images, sizes, ids, mask)
    for ours, expected in ((tokens, output.tokens), (deltas, output.deltas), (centerness, output.centerness)):
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(anchors, places, strict=True))


@pytest.mark.parametrize("fault", [1e-3, torch.nan])
def test_a_program_that_computes_something_else_is_refused(fault):
    model = nn.Linear(2, 2)
    inputs = (torch.ones(1, 2),)
    assert largest_difference(model, model, inputs) == 0.0
    other = nn.Linear(2, 2)
    other.load_state_dict({"weight": model.weight, "bias": model.bias + fault})
    with pytest.raises(WeightsError, match="differs from the model"):
        largest_difference(model, other, inputs)


def test_onnx_of_the_dual_encoder_in_onnxruntime(tmp_path):
    """Names, free axes, opset, and the features of images and texts that the predictor gives, in three sizes."""
    onnx, onnxruntime, size = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime"), (128, 128)
    export = read_export(coarse_export(tmp_path / "e"))
    assert export_onnx(export, tmp_path / "dual.onnx", size) <= 1e-4
    assert [entry.version for entry in onnx.load(tmp_path / "dual.onnx").opset_import if not entry.domain] == [20]
    session = onnxruntime.InferenceSession(str(tmp_path / "dual.onnx"), providers=["CPUExecutionProvider"])
    assert {one.name: one.shape for one in session.get_inputs()} == {
        "images": ["batch", 3, *size], "ids": ["batch", "length"], "mask": ["batch", "length"],
    }  # fmt: skip
    predictor = fiber.load(tmp_path / "e", device="cpu")
    for texts in (["a"], ["a", "two dogs", "red"], ["two red dogs"] * 5):
        ids = np.array(predictor.tokenizer(texts, padding=True).input_ids)
        images = np.random.default_rng(0).integers(0, 256, (len(texts), 3, *size), dtype=np.uint8)
        given = {"images": images, "ids": ids, "mask": (ids != 1).astype(np.int64)}
        image, text = session.run(["image_features", "text_features"], given)
        np.testing.assert_allclose(text, predictor.embed_texts(texts), atol=1e-4)
        state = predictor.model.image_prefix(torch.from_numpy(images))
        np.testing.assert_allclose(image, predictor.model.image_embedding(state), atol=1e-4)


def test_onnx_of_the_detector_in_onnxruntime(tmp_path):
    """The head's outputs for one image, for several, and for texts of three lengths, in one file."""
    onnxruntime, size = pytest.importorskip("onnxruntime"), (64, 96)
    export = read_export(fine_export(tmp_path / "e", anchor_sizes=(64, 128, 256), strides=(8, 16, 32)))
    assert export_onnx(export, tmp_path / "d.onnx", size) <= 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "d.onnx"), providers=["CPUExecutionProvider"])
    assert {one.name: one.shape for one in session.get_inputs()} == {
        "images": ["batch", 3, *size], "sizes": ["batch", 2], "ids": ["batch", "length"], "mask": ["batch", "length"],
    }  # fmt: skip
    names = [
        f"{name}_{n}" for name in ("token_logits", "box_deltas", "centerness_logits", "anchors") for n in range(3)
    ]
    assert [one.name for one in session.get_outputs()] == names
    model = fiber.load(tmp_path / "e", device="cpu").model
    for rows, length in ((1, 20), (2, 5), (3, 32)):
        ids = torch.randint(4, 200, (rows, length), generator=torch.Generator().manual_seed(7))
        images = torch.randint(0, 256, (rows, 3, *size), dtype=torch.uint8)
        sizes = torch.tensor([[size[0] - 3 * row, size[1] - 5] for row in range(rows)])
        given = {"images": images, "sizes": sizes, "ids": ids, "mask": ids * 0 + 1}
        found = session.run(names, {name: tensor.numpy() for name, tensor in given.items()})
        output, places = model(*given.values())
        expected = [*output.tokens, *output.deltas, *output.centerness, *places]
        assert len(expected) == len(found) == 12
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_size_that_the_model_cannot_take_is_one_line(tmp_path):
    with pytest.raises(WeightsError, match="size 64x70: a detector takes multiples of 32 px"):
        write_program(read_export(fine_export(tmp_path / "f")), tmp_path / "x.pt2", (64, 70))
    with pytest.raises(WeightsError, match=r"size 70x64: .*multiple of"):
        write_program(read_export(coarse_export(tmp_path / "c")), tmp_path / "x.pt2", (70, 64))
    assert not (tmp_path / "x.pt2").exists()


def test_onnx_without_its_packages_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(WeightsError, match=r"pip install 'fiber-vl\[onnx\]'"):
        export_onnx(None, tmp_path / "x.onnx")
