"""Released files: read without running their code, understood from their shapes, and written back the same."""

import collections
import os

import pytest
import torch

from fiber.errors import WeightsError
from fiber.weights.official import is_queue
from fiber.weights.official_file import convert, derive, read_official
from fiber.weights.tensors import load_safely
from released import coarse_weights, detection_file, fine_weights, lightning_file


def test_a_lightning_file_tells_its_configuration(shared, tmp_path):
    weights = lightning_file(shared, tmp_path / "a.ckpt")
    file = read_official(tmp_path / "a.ckpt")
    assert file.stage == "coarse"
    assert len(file.dropped) == 7
    assert all(is_queue(name) for name in file.dropped)
    config = derive(file, pad_id=1).config
    image, text = config.model.image, config.model.text
    assert (image.embed_dim, image.depths, image.heads, image.window) == (16, (2, 2, 18, 2), (1, 2, 4, 8), 4)
    assert (text.width, text.layers, text.heads, text.intermediate) == (32, 12, 4, 128)
    assert (config.model.num_fused, config.model.head_width, config.model.query_norm) == (6, 32, True)
    assert (config.vocab_size, config.image_size, config.max_text) == (120, 128, 12)
    assert config.classifiers == {"vqa": 11, "nlvr2": 2}
    ours, rest = convert(file, config)
    assert len(ours) + len(rest) == len(weights)
    assert ours["heads.temperature.value"].shape == (1,)
    for unused in ("rank_output.weight", "text_transformer.pooler.dense.bias", "cross_modal_att_layers.0.bias"):
        assert unused in rest


def test_what_shapes_do_not_tell_is_said(shared, tmp_path):
    lightning_file(shared, tmp_path / "a.ckpt", hyper=False)
    file = read_official(tmp_path / "a.ckpt")
    facts = derive(file, pad_id=1)
    # Queues tell sizes; heads fall back on RoBERTa's width, which is wrong here and therefore listed.
    assert (facts.config.image_size, facts.config.max_text, facts.config.model.text.heads) == (128, 12, 1)
    assert facts.origins == [
        "text heads 1: 64 channels per head as in RoBERTa",
        "max_text 12: the file",
        "image_size 128: the file",
    ]
    given = derive(file, pad_id=1, text_heads=4, max_text=99, image_size=256)
    assert (given.config.model.text.heads, given.config.image_size) == (4, 256)
    assert given.config.max_text == 12  # 14 rows of positions, two of them before the first token
    assert "instead of 99" in given.origins[1]


def test_a_detection_file_tells_its_configuration(shared, tmp_path):
    weights = detection_file(shared, tmp_path / "a.pth")
    file = read_official(tmp_path / "a.pth")
    assert file.stage == "fine"
    assert all(torch.equal(file.state[name], tensor) for name, tensor in weights.items())
    config = derive(file, pad_id=1, text_heads=4, max_text=32).config
    assert (config.model.query_norm, config.model.num_fused) == (False, 6)  # "v2": no norm on the query
    assert config.detector == {
        "channels": 32,
        "head_channels": 32,
        "head_blocks": 2,
        "anchor_sizes": [64, 128, 256, 512, 1024],
        "strides": [8, 16, 32, 64, 128],
        "text_limit": 32,
        "prompt_tuning": False,
    }
    name = "rpn.head.log_scale"
    assert torch.equal(read_official(tmp_path / "a.pth", "model_ema").state[name], weights[name] + 1)


def test_variants_are_recognised_by_their_tensors(shared, tmp_path):
    weights = fine_weights(shared)
    body = "fusion_backbone.backbone.body.layers"
    for s, i in [(2, 14), (2, 15), (2, 16), (2, 17), (3, 0), (3, 1)]:
        weights[f"{body}.{s}.blocks.{i}.attn.norm_i2t_i.weight"] = torch.ones(16 * 2**s)
        weights[f"{body}.{s}.blocks.{i}.attn.norm_i2t_i.bias"] = torch.zeros(16 * 2**s)
    weights["fusion_backbone.tunable_linear.weight"] = torch.zeros(1000, 32)
    torch.save({"model": weights}, tmp_path / "v3.pth")
    config = derive(read_official(tmp_path / "v3.pth"), pad_id=1).config
    assert config.model.query_norm  # "v3"
    assert config.detector["prompt_tuning"]


class Malicious:
    """Runs a command when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path):
    trace = tmp_path / "owned"
    for protocol in (2, 4):
        torch.save({"state_dict": {}, "x": Malicious(trace)}, tmp_path / "evil.ckpt", pickle_protocol=protocol)
        with pytest.raises(WeightsError, match="refused"):
            load_safely(tmp_path / "evil.ckpt")
    assert not trace.exists()


def test_a_class_that_is_not_listed_is_named(tmp_path):
    torch.save({"state_dict": {}, "x": collections.deque([1])}, tmp_path / "odd.ckpt")
    with pytest.raises(WeightsError, match=r"collections\.deque"):
        load_safely(tmp_path / "odd.ckpt")


def test_files_of_another_kind_are_named_as_such(shared, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match=r"x\.pth"):
        read_official(path)
    with pytest.raises(WeightsError, match="no file"):
        read_official(tmp_path / "absent.pth")
    for content, message in (
        ([1, 2], "holds a list"),
        ({"weights": {}}, "no 'model'"),
        ({"model": {"conv1.weight": torch.zeros(1)}}, r"no released weights.*conv1\.weight"),
    ):
        torch.save(content, path)
        with pytest.raises(WeightsError, match=message):
            read_official(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable checkpoint"),
        (b"\x80", "not a readable checkpoint"),
        (b"hello world", "not a readable checkpoint"),
        ({"state_dict": [1], "x": torch.zeros(1)}, "'state_dict' is a list"),
        ({"state_dict": None}, "'state_dict' is a NoneType"),
        ({"state_dict": {1: torch.zeros(1)}}, r"no released weights.*\(1\)"),
        ({"hyper_parameters": [1]}, "hyper_parameters are a list"),
        ({"hyper_parameters": "abc"}, "hyper_parameters are a str"),
        ({"hyper_parameters": {"config": [1]}}, "hyper_parameters are a list"),
        ({"hyper_parameters": {"config": {"image_size": "big"}}}, "image_size is 'big', not a whole number"),
    ],
)
def test_every_damaged_file_is_one_line_that_names_it(tmp_path, content, message):
    path = tmp_path / "a.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"state_dict": {"vit_model.norm.weight": torch.zeros(1)}} | content, path)
    with pytest.raises(WeightsError, match=rf"^{path}.*{message}") as caught:
        read_official(path)
    assert "\n" not in str(caught.value)


def test_settings_that_are_not_there_and_scalar_queues_are_no_hindrance(tmp_path):
    state = {"vit_model.norm.weight": torch.zeros(1), "image_input_queue": torch.zeros(())}
    torch.save({"state_dict": state, "hyper_parameters": {"config": None}}, tmp_path / "a.ckpt")
    assert read_official(tmp_path / "a.ckpt").hyper == {}


def test_contradicting_shapes_are_refused(shared, tmp_path):
    for change, message in (
        ({"vit_model.layers.3.blocks.0.attn.relative_position_bias_table": torch.zeros(25, 8)}, r"windows \[3, 4\]"),
        ({"vit_model.patch_embed.proj.weight": torch.zeros(16, 3, 2, 2)}, "usual form"),
    ):
        torch.save({"state_dict": coarse_weights(shared) | change}, tmp_path / "a.ckpt")
        with pytest.raises(WeightsError, match=message):
            derive(read_official(tmp_path / "a.ckpt"), pad_id=1)
    partial = {n: t for n, t in coarse_weights(shared).items() if "blocks.7." not in n}
    torch.save({"state_dict": partial}, tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match="not consecutive"):
        derive(read_official(tmp_path / "a.ckpt"), pad_id=1)
