"""Released files to exports that reproduce the recorded outputs, and back to the same tensors."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fiber
from fiber.coarse.caption_losses import caption_logits, start_captions
from fiber.config.base import ImageTowerConfig, ModelConfig, TextTowerConfig
from fiber.config.loading import to_yaml
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import DetectorConfig, RegionConfig, Stage2Config
from fiber.data.shapes.tokenizer import train_bpe
from fiber.tasks.coarse_model import build_model
from fiber.tasks.regions import build_detector
from fiber.weights.export import read_export
from released import detection_file, lightning_file, word_tokenizer

TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"
spec = importlib.util.spec_from_file_location("convert_checkpoint", TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
main = tool.main


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("words")
    word_tokenizer(folder)
    return str(folder)


def test_stage_1_converts_reproduces_and_converts_back(shared, tmp_path, tokenizer, capsys):
    weights = lightning_file(shared, tmp_path / "official.ckpt")
    answers = [f"answer {i}" for i in range(11)]
    (tmp_path / "answers.json").write_text(json.dumps({"answers": answers}))
    options = ["--tokenizer", tokenizer, "--answers", str(tmp_path / "answers.json")]
    assert main([str(tmp_path / "official.ckpt"), str(tmp_path / "export"), *options]) == 0
    said = capsys.readouterr().out
    for part in ("text heads 4: the file", "new          0 tensors", "rank_output", "image_input_queue"):
        assert part in said

    io = load_file(shared / "parity/coarse_a.io.safetensors")
    predictor = fiber.load(tmp_path / "export", device="cpu")
    assert predictor.tasks == ("match", "retrieve", "caption", "answer", "embed", "classify")
    assert predictor.answers == answers
    model = predictor.model
    image, text = model.image_prefix(io["in.image"]), model.text_prefix(io["in.text_ids"], io["in.text_masks"])
    fused, images = model.fuse(image, text), start_captions(model, io["in.image"])
    for ours, name in (
        (fused.text, "fused.text_feats"),
        (fused.cls, "fused.cls_feats"),
        (model.image_embedding(image), "itc.image_cls_feats"),
        (model.text_embedding(text), "itc.text_cls_feats"),
        (model.heads.classifiers["vqa"](fused.cls), "vqa.logits"),
        (caption_logits(model, images, io["in.text_ids"], io["in.text_masks"]), "caption.logits"),
    ):
        torch.testing.assert_close(ours, io[name], atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")

    assert main([str(tmp_path / "export"), str(tmp_path / "back.ckpt")]) == 0
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"]
    assert_same(back, weights)


def test_stage_2_converts_reproduces_and_converts_back(shared, tmp_path, tokenizer):
    weights = detection_file(shared, tmp_path / "official.pth")
    options = ["--tokenizer", tokenizer, "--text-heads", "4", "--max-text", "32", "--image-size", "96"]
    assert main([str(tmp_path / "official.pth"), str(tmp_path / "export"), *options]) == 0

    io = load_file(shared / "parity/fine_a.io.safetensors")
    predictor = fiber.load(tmp_path / "export", device="cpu")
    assert predictor.tasks == ("ground", "refer", "detect")
    images = io["input.images"].flip(1)  # the release reads BGR
    output, _ = predictor.model(images, io["input.image_sizes"], io["input.input_ids"], io["input.attention_mask"])
    for level, ours in enumerate(output.tokens):
        recorded = io[f"head.dot_product_logits.p{level + 3}"]
        torch.testing.assert_close(ours, recorded, atol=1e-4, rtol=0)
    for level, ours in enumerate(output.deltas):
        recorded = io[f"head.bbox_reg.p{level + 3}"].flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours, recorded, atol=1e-4, rtol=0)

    assert main([str(tmp_path / "export"), str(tmp_path / "back.pth")]) == 0
    assert_same(torch.load(tmp_path / "back.pth", weights_only=True)["model"], weights)


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_the_newest_checkpoint_of_a_run_becomes_an_export(tmp_path, stage):
    run = tmp_path / "run"
    words = train_bpe(["a red circle", "two dogs"], 270, tmp_path / "words")
    model_config = ModelConfig(
        image=ImageTowerConfig(embed_dim=8, depths=(1, 1), heads=(1, 2), window=2),
        text=TextTowerConfig(width=16, layers=1, heads=2, intermediate=32),
        num_fused=1,
        head_width=16,
    )
    about = {"output": str(run), "tokenizer": str(tmp_path / "words"), "model": model_config, "max_text": 8}
    if stage == "coarse":
        config = Stage1Config(**about, image_size=32)
        model = build_model(config, words)
    else:
        detector = DetectorConfig(8, 8, 1, 4, anchor_sizes=(64, 128), strides=(8, 16))
        config = Stage2Config(**about, detector=detector, regions=RegionConfig(test_side=64, max_side=96))
        model = build_detector(config, words)
    for number, shift in ((3, 1.0), (7, 0.0)):  # an older checkpoint has other weights
        step = run / "checkpoints" / f"step_{number:06d}"
        step.mkdir(parents=True)
        task = {f"model.{name}": tensor + shift for name, tensor in model.state_dict().items()}
        save_file(task | {"queue.image": torch.zeros(2)}, step / "model.safetensors")
        (step / "state.json").write_text(json.dumps({"step": number}))
        sizes = {file.name: file.stat().st_size for file in step.iterdir()}
        (step / "manifest.json").write_text(json.dumps(sizes))
    (run / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "names.json").write_text(json.dumps(["dog"]))

    assert main([str(run), str(tmp_path / "export"), "--categories", str(tmp_path / "names.json")]) == 0
    export = read_export(tmp_path / "export")
    assert_same(export.tensors, model.state_dict())
    assert "optimizer steps: 7" in (tmp_path / "export" / "README.md").read_text()
    predictor = fiber.load(tmp_path / "export")
    assert predictor.config.stage == stage
    assert predictor.categories == ["dog"]


def test_errors_are_one_line_and_status_1(tmp_path, tokenizer, capsys, shared):
    lightning_file(shared, tmp_path / "official.ckpt")
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no"]))
    cases = (
        ([str(tmp_path / "absent.ckpt"), str(tmp_path / "out")], "no file"),
        ([str(tmp_path / "official.ckpt"), str(tmp_path / "out"), "--tokenizer", str(tmp_path)], "no tokenizer"),
        (
            [
                *(str(tmp_path / "official.ckpt"), str(tmp_path / "out"), "--tokenizer", tokenizer),
                *("--answers", str(tmp_path / "answers.json")),
            ],
            "2 answers for a question head of 11",
        ),
    )
    for argv, message in cases:
        assert main(argv) == 1
        assert message in capsys.readouterr().err
    assert not Path(tmp_path / "out").exists()


def assert_same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
