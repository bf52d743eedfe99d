"""Pre-trained towers give the features of timm and transformers themselves (random weights, no download)."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import RobertaConfig, RobertaModel

from fiber.backbone.fusion import FusionBackbone
from fiber.backbone.image import SwinTower
from fiber.backbone.text import RobertaTower
from fiber.data.shapes.tokenizer import train_bpe
from fiber.errors import WeightsError
from fiber.weights.pretrained import load_pretrained_towers

DEPTHS, HEADS, WIDTH = (2, 2, 4, 2), (1, 2, 4, 8), 16


def randomise(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def timm_swin(size, window: int) -> nn.Module:
    options = {"embed_dim": WIDTH, "depths": DEPTHS, "num_heads": HEADS, "num_classes": 0}
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=size, window_size=window, **options).eval()
    randomise(model, seed=0)
    return model


def our_backbone(window: int, vocab: int = 270, **options) -> FusionBackbone:
    image = SwinTower(embed_dim=WIDTH, depths=DEPTHS, heads=HEADS, window=window, **options)
    text = RobertaTower(vocab_size=vocab, width=32, layers=3, heads=4, intermediate=64, max_positions=40)
    return FusionBackbone(image, text, num_fused=1).eval()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_bpe(["a red circle", "two dogs"], 270, tmp_path_factory.mktemp("own"))


@pytest.mark.parametrize(
    ("size", "window", "padded"),
    [((224, 224), 7, False), ((384, 384), 12, False), ((224, 448), 7, False), ((512, 256), 4, True)],
)
def test_swin_features_are_those_of_timm(tmp_path, tokenizer, size, window, padded):
    theirs, ours = timm_swin(size, window), our_backbone(window, padded=padded)
    save_file({n: t.contiguous() for n, t in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    report = load_pretrained_towers(ours, tokenizer, image=str(tmp_path))["image"]
    assert (report.resized, report.unused) == ({}, [])
    assert not any(name.startswith("image.") for name in report.new)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.forward_features(images).flatten(1, 2)
        features = ours.finish_image(ours.image_prefix(images))
    assert expected.std() > 0.1
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_the_original_form_with_merges_at_the_end_loads_the_same(tmp_path, tokenizer):
    state = timm_swin(64, 2).state_dict()
    original = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if "downsample" in name:
            parts[1] = str(int(parts[1]) - 1)
        original[".".join(parts)] = tensor
    save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "timm.safetensors")
    torch.save({"model": original | {"head.weight": torch.zeros(2, 2)}}, tmp_path / "original.pth")
    first, second = our_backbone(2), our_backbone(2)
    load_pretrained_towers(first, tokenizer, image=str(tmp_path / "timm.safetensors"))
    load_pretrained_towers(second, tokenizer, image=str(tmp_path / "original.pth"))
    for name, tensor in first.image.state_dict().items():
        assert torch.equal(second.image.state_dict()[name], tensor), name


def test_another_window_is_resized_and_another_depth_refused(tmp_path, tokenizer):
    save_file({n: t.contiguous() for n, t in timm_swin(64, 2).state_dict().items()}, tmp_path / "s.safetensors")
    report = load_pretrained_towers(our_backbone(3), tokenizer, image=str(tmp_path / "s.safetensors"))["image"]
    assert len(report.resized) == sum(DEPTHS)
    deeper = FusionBackbone(SwinTower(embed_dim=WIDTH, depths=(2, 2, 6, 2), heads=HEADS), our_backbone(2).text, 1)
    with pytest.raises(WeightsError, match=r"depths \(2, 2, 4, 2\), model\.image\.depths is \(2, 2, 6, 2\)"):
        load_pretrained_towers(deeper, tokenizer, image=str(tmp_path / "s.safetensors"))
    with pytest.raises(WeightsError, match="timm cannot load"):
        load_pretrained_towers(our_backbone(2), tokenizer, image="no_such_swin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable checkpoint"),
        (b"hello world", "not a readable checkpoint"),
        ([1], "holds no state dict"),
        ({"model": [1]}, "holds no state dict"),
        ({"layers": torch.zeros(1)}, r"depths \(\)"),
        ({"layers.0.blocks.x.w": torch.zeros(1)}, r"depths \(\)"),
        ({1: torch.zeros(1)}, r"depths \(\)"),
    ],
)
def test_a_damaged_file_of_a_tower_is_one_line_that_names_it(tmp_path, tokenizer, content, message):
    path = tmp_path / "swin.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(WeightsError, match=rf"^{path}.*{message}"):
        load_pretrained_towers(our_backbone(2), tokenizer, image=str(path))


def test_a_damaged_folder_of_roberta_is_one_line_that_names_it(tmp_path, tokenizer):
    for name, content in (("model.safetensors", b""), ("tokenizer.json", b"{")):
        roberta_folder(tmp_path, tokenizer)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=f"no RoBERTa weights at {tmp_path}") as caught:
            load_pretrained_towers(our_backbone(2, len(tokenizer)), tokenizer, text=str(tmp_path))
        assert "\n" not in str(caught.value)


def roberta_folder(folder, tokenizer, **changes) -> RobertaModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    facts = {"max_position_embeddings": 40, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
    config = RobertaConfig(**{"vocab_size": len(tokenizer)} | sizes | facts | changes)
    model = RobertaModel(config, add_pooling_layer=False).eval()
    randomise(model, seed=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def test_text_features_are_those_of_transformers(tmp_path, tokenizer):
    theirs, ours = roberta_folder(tmp_path, tokenizer), our_backbone(2, len(tokenizer))
    report = load_pretrained_towers(ours, tokenizer, text=str(tmp_path))["text"]
    assert not any(name.startswith("text.") for name in report.new)
    ids = torch.randint(4, len(tokenizer), (3, 20), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(20) < torch.tensor([[20], [11], [3]])).long()
    ids = ids * mask + (1 - mask)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask).last_hidden_state
        features = ours.finish_text(ours.text_prefix(ids, mask))
    assert expected.std() > 0.1
    torch.testing.assert_close(features[mask == 1], expected[mask == 1], atol=1e-5, rtol=1e-5)


def test_rows_follow_their_tokens_into_another_vocabulary(tmp_path, tokenizer):
    other = train_bpe(["three green squares above a dog"] * 3, 275, tmp_path / "other")
    theirs, ours = roberta_folder(tmp_path / "roberta", other), our_backbone(2, len(tokenizer))
    report = load_pretrained_towers(ours, tokenizer, text=str(tmp_path / "roberta"))["text"]
    assert "by their tokens" in report.resized["text.embeddings.word.weight"]
    words = theirs.embeddings.word_embeddings.weight
    shared = set(other.get_vocab()) & set(tokenizer.get_vocab())
    assert len(shared) > 250
    for token in shared:
        mine = ours.text.embeddings.word.weight[tokenizer.get_vocab()[token]]
        assert torch.equal(mine, words[other.get_vocab()[token]]), token


def test_facts_that_shapes_do_not_show_are_checked(tmp_path, tokenizer):
    roberta_folder(tmp_path, tokenizer, num_attention_heads=2)
    with pytest.raises(WeightsError, match=r"model\.text\.heads 2, this model 4"):
        load_pretrained_towers(our_backbone(2, len(tokenizer)), tokenizer, text=str(tmp_path))
    with pytest.raises(WeightsError, match="no RoBERTa weights"):
        load_pretrained_towers(our_backbone(2), tokenizer, text=str(tmp_path / "absent"))
