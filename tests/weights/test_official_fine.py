"""Official stage-2 names: one for every tensor of ours, both ways, and what the channel turn means."""

import sys
from pathlib import Path

import pytest
import torch

from fiber.weights.official import is_derived, official_name
from fiber.weights.official_fine import fine_names, from_official_fine, to_official_fine

sys.path.append(str(Path(__file__).parents[1] / "fine"))
from tiny_detector import tiny_detector

SHAPE = {"depths": (1, 1, 2, 1), "layers": 3, "num_fused": 2, "head_blocks": 2}


@pytest.mark.parametrize(("levels", "query_norm"), [(3, False), (5, True)])
def test_every_tensor_has_one_name_and_comes_back(levels: int, query_norm: bool) -> None:
    strides = [8 * 2**i for i in range(levels)]
    model = tiny_detector(query_norm, prompt_tuning=True, strides=strides, anchor_sizes=[4 * s for s in strides])
    names = fine_names(**SHAPE, levels=levels)
    state = {n: torch.randn_like(t) for n, t in model.state_dict().items()}
    official = to_official_fine(state, names)
    assert len(official) == len(state)
    again = from_official_fine(official, model.state_dict(), names)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[n], state[n]) for n in state)
    block = official["fusion_backbone.backbone.body.layers.2.blocks.1.attn.alpha_i2t"]
    assert torch.equal(block, state["backbone.fusion.image_to_text.0.gate"])
    assert ("fusion_backbone.backbone.body.layers.3.blocks.0.attn.norm_i2t_i.weight" in official) == query_norm
    assert ("fusion_backbone.backbone.fpn.top_blocks.p7.weight" in official) == (levels == 5)
    assert "rpn.head.cls_logits.weight" not in official


def test_released_weights_want_bgr_and_ours_rgb() -> None:
    model = tiny_detector()
    names = fine_names(**SHAPE, levels=3)
    official = to_official_fine(model.state_dict(), names)
    image = torch.randn(1, 3, 8, 8)
    ours = model.backbone.image.patch_embed.proj
    weight = official[official_name("backbone.image.patch_embed.proj.weight", names)]
    bgr = torch.nn.functional.conv2d(image[:, [2, 1, 0]], weight, ours.bias, stride=4)
    torch.testing.assert_close(ours(image), bgr)


def test_derived_entries_are_no_weights() -> None:
    prefix = "fusion_backbone.backbone.body.layers.0.blocks.0.attn"
    assert is_derived(f"{prefix}.relative_position_index")
    assert is_derived("rpn.anchor_generator.cell_anchors.0")
    assert not is_derived(f"{prefix}.relative_position_bias_table")
