"""The export folder: written whole or not at all, read back equal, strict about what it holds."""

import json
from dataclasses import replace

import pytest
import torch

from fiber.errors import WeightsError
from fiber.weights.card import Card
from fiber.weights.export import read_export, write_export
from fiber.weights.export_config import coarse_config
from fiber.weights.hub import export_folder


def test_an_export_reads_back_equal(tmp_path, model, config, tokenizer):
    folder = tmp_path / "run" / "export"
    card = Card(data=["shapes (generated)"], steps=7, metrics={"t2i_r1": 0.5}, notes=["a test"])
    exported = coarse_config(config, tokenizer, {"vqa": 3})
    extras = {"rank_output.bias": torch.ones(1)}
    write_export(
        folder,
        model.state_dict(),
        exported,
        tokenizer,
        card=card,
        answers=["yes", "no", "züge"],
        extras=extras,
    )
    for path in (folder, folder.parent):  # a run directory leads to its export
        read = read_export(path)
        assert read.tensors.keys() == model.state_dict().keys()
        assert all(torch.equal(tensor, read.tensors[name]) for name, tensor in model.state_dict().items())
        assert read.config == replace(exported, model=replace(exported.model, image=read.config.model.image))
        assert read.config.model.image.pretrained is None
        assert read.answers == ["yes", "no", "züge"]
        assert read.categories == []
        assert read.extras.keys() == extras.keys()
        assert read.tokenizer("a red circle").input_ids == tokenizer("a red circle").input_ids
    text = (folder / "README.md").read_text()
    for part in (
        "# run\n",
        "shapes (generated)",
        "optimizer steps: 7",
        "| t2i_r1 | 0.5 |",
        "vqa head: 3 classes",
        "a test",
    ):
        assert part in text
    assert not list(tmp_path.rglob("*.partial"))


def test_half_precision_keeps_its_dtype(tmp_path, model, config, tokenizer):
    tensors = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    write_export(tmp_path / "e", tensors, coarse_config(config, tokenizer), tokenizer)
    assert {tensor.dtype for tensor in read_export(tmp_path / "e").tensors.values()} == {torch.bfloat16}


def test_an_older_export_is_replaced_and_another_folder_is_not(tmp_path, model, config, tokenizer):
    tensors, exported = model.state_dict(), coarse_config(config, tokenizer)
    write_export(tmp_path / "e", tensors, replace(exported, classifiers={"vqa": 1}), tokenizer, answers=["yes"])
    write_export(tmp_path / "e", tensors, exported, tokenizer)
    assert read_export(tmp_path / "e").answers == []
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("long work")
    with pytest.raises(WeightsError, match="not an export"):
        write_export(tmp_path / "thesis", tensors, exported, tokenizer)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "long work"


def test_contradictions_are_refused_before_anything_is_written(tmp_path, model, config, tokenizer):
    tensors, exported = model.state_dict(), coarse_config(config, tokenizer)
    with pytest.raises(WeightsError, match="tokenizer has"):
        write_export(tmp_path / "e", tensors, replace(exported, vocab_size=1000), tokenizer)
    three = replace(exported, classifiers={"vqa": 3})
    with pytest.raises(WeightsError, match="2 answers"):
        write_export(tmp_path / "e", tensors, three, tokenizer, answers=["a", "b"])
    broken = tensors | {"heads.itm.bias": torch.tensor([0.0, torch.nan])}
    with pytest.raises(WeightsError, match=r"heads\.itm\.bias"):
        write_export(tmp_path / "e", broken, exported, tokenizer)
    assert not list(tmp_path.iterdir())


def test_what_is_no_export_is_said_so(tmp_path, model, config, tokenizer):
    with pytest.raises(WeightsError, match=r"no config\.json"):
        read_export(tmp_path)
    with pytest.raises(WeightsError, match="no folder"):
        export_folder("nowhere")
    write_export(tmp_path / "e", model.state_dict(), coarse_config(config, tokenizer), tokenizer)
    path = tmp_path / "e" / "config.json"
    plain = json.loads(path.read_text())
    for change, message in (
        ({"format": "other"}, "format"),
        ({"version": 2}, "version"),
        ({"image_sise": 3}, "image_sise: unknown key; nearest valid key is image_size"),
    ):
        path.write_text(json.dumps(plain | change))
        with pytest.raises(WeightsError, match=message):
            read_export(tmp_path / "e")
    path.unlink()
    with pytest.raises(WeightsError, match=r"no config\.json"):
        read_export(tmp_path / "e")


@pytest.mark.parametrize("damage", ["cut short", "empty", "zeros", "not finite", "answers", "deep answers"])
def test_a_damaged_export_is_one_line_that_names_the_file(tmp_path, model, config, tokenizer, damage):
    folder = write_export(tmp_path / "e", model.state_dict(), coarse_config(config, tokenizer), tokenizer)
    weights, answers = folder / "model.safetensors", folder / "answers.json"
    content = weights.read_bytes()
    if damage == "cut short":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "zeros":
        weights.write_bytes(bytes(len(content)))
    elif damage == "not finite":
        weights.write_bytes(content[:-4] + b"\xff\xff\xff\x7f")
    else:
        answers.write_bytes(b"[" * 100_000 if damage == "deep answers" else b'{"a": 1}')
    with pytest.raises(WeightsError, match="answers.json" if "answers" in damage else "model.safetensors") as caught:
        read_export(folder)
    assert "\n" not in str(caught.value)
