"""Blocks through torch.compile: what they give is what they gave, in few graphs. The tracing is the real one; code
is generated for one layer."""

import copy
import shutil
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from fiber.backbone.build import build_backbone
from fiber.backbone.image import SwinBlock
from fiber.backbone.init import initialise
from fiber.backbone.text import RobertaLayer
from fiber.config.base import ImageTowerConfig, TextTowerConfig, TowersConfig, TrainConfig
from fiber.errors import ConfigError
from fiber.fine.dyhead import DynamicBlock
from fiber.tasks.compiled import compile_blocks


def config(checkpointing: Any = False, **train: Any) -> Any:
    return SimpleNamespace(
        train=TrainConfig(**{"compile": True} | train), model=SimpleNamespace(checkpointing=checkpointing)
    )


@pytest.fixture(autouse=True)
def _traced_anew() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def backbone(fine: bool) -> nn.Module:
    """One unfused block with its text layer, and two fused pairs; all gates open."""
    image = ImageTowerConfig(embed_dim=8, depths=(3,), heads=(2,), window=4, drop_path=0.2)
    text = TextTowerConfig(width=16, layers=3, heads=2, intermediate=32, dropout=0.0)
    made = build_backbone(TowersConfig(image=image, text=text, num_fused=2), 50, 1, 12, fine=fine)
    initialise(made, "fan_in", 0)
    for name, parameter in made.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.5)
    return made.train()


def test_towers_and_pairs_of_stage_1_are_equal_and_whole() -> None:
    """Gradients, too; a copy is compiled like the original and does not touch it; evaluation is not compiled."""
    plain, compiled = backbone(fine=False), backbone(fine=False)
    compile_blocks(compiled, config(), backend="eager")
    compiled = copy.deepcopy(compiled)
    images, ids = torch.randn(2, 3, 32, 32), torch.randint(4, 50, (2, 7))
    found = []
    for model in (plain, compiled):
        torch.manual_seed(3)
        fused = model.fuse(model.image_prefix(images), model.text_prefix(ids, torch.ones_like(ids)))
        (fused.image.square().mean() + fused.text.square().mean()).backward()
        found.append([fused.image, fused.text, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 60
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert graphs() == 4  # a block, a layer, two pairs
    with torch.no_grad():
        compiled.eval().image_prefix(torch.randn(3, 3, 32, 32))
    assert graphs() == 4


def test_image_blocks_take_a_graph_for_each_kind_of_padding() -> None:
    """Six sizes, of which windows of 4 divide both sides, or the height alone: two graphs."""
    block = SwinBlock(8, 2, 4, shifted=False, mlp_ratio=2.0, drop_path=0.0, padded=True)
    compile_blocks(block.train(), config(), backend="eager")
    for grid in ((8, 12), (12, 8), (16, 8), (8, 10), (8, 14), (12, 10)):
        x = torch.randn(2, grid[0] * grid[1], 8)
        torch.testing.assert_close(block(x, grid), SwinBlock.forward(block, x, grid))
    assert graphs() == 2


def test_blocks_of_the_head_take_a_few_graphs_for_all_sizes() -> None:
    head = DynamicBlock(8, 8, 4).train()
    plain = copy.deepcopy(head)
    compile_blocks(
        nn.ModuleList([head, SwinBlock(8, 2, 4, shifted=False, mlp_ratio=1.0, drop_path=0.0, padded=True)]),
        config(),
        backend="eager",
    )
    for height, width in ((8, 12), (12, 8), (10, 14)):
        levels = [torch.randn(2, 8, height, width), torch.randn(2, 8, height // 2, width // 2)]
        for one, other in zip(head(levels), plain(levels), strict=True):
            torch.testing.assert_close(one, other)
    assert graphs() <= 2


def test_generated_code_forward_and_backward() -> None:
    """Of one layer; without a C++ compiler, what autograd traces in its place."""
    layer = RobertaLayer(16, 2, 32, 0.0, 1e-5).train()
    plain = copy.deepcopy(layer)
    compile_blocks(layer, config(), backend="inductor" if shutil.which("g++") else "aot_eager")
    y, bias = torch.randn(2, 5, 16), torch.zeros(2, 1, 1, 5)
    for model in (layer, plain):
        model(y, bias).square().mean().backward()
    for one, other in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_what_excludes_it() -> None:
    layer = RobertaLayer(16, 2, 32, 0.0, 1e-5)
    compile_blocks(layer, config(compile=False))
    assert "forward" not in vars(layer)
    with pytest.raises(ConfigError, match="zero_stage 2 or less"):
        compile_blocks(layer, config(zero_stage=3))
    with pytest.raises(ConfigError, match="checkpointing true or false"):
        compile_blocks(layer, config("selective"))
