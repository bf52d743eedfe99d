"""Low-rank adapters: nothing changes at the start, the peft library agrees, merged weights give equal outputs."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fiber.backbone.fusion import FusionBackbone
from fiber.backbone.image import SwinTower
from fiber.backbone.lora import PROJECTIONS, LoraLinear, add_lora, merge_lora
from fiber.backbone.text import RobertaTower
from fiber.weights.load import load_weights

RANK, ALPHA = 3, 6.0


class Model(nn.Module):
    """A backbone with open gates and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        image = SwinTower(embed_dim=8, depths=(1, 2), heads=(1, 2), window=4, drop_path=0.0)
        text = RobertaTower(vocab_size=40, width=16, layers=3, heads=2, intermediate=32, dropout=0.0)
        self.backbone = FusionBackbone(image, text, num_fused=2)
        self.head = nn.Linear(16, 2)
        for name, parameter in self.named_parameters():
            if name.endswith("gate"):
                parameter.data.fill_(0.5)

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        fused = self.backbone.fuse(
            self.backbone.image_prefix(images), self.backbone.text_prefix(ids, torch.ones_like(ids))
        )
        return torch.cat([self.head(fused.text), self.head(fused.image)], 1)


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 32, 32, generator=draw), torch.randint(4, 40, (2, 6), generator=draw)


@pytest.fixture
def trained() -> Model:
    """An adapted model whose adapters have moved."""
    model = Model()
    add_lora(model, RANK, ALPHA)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
    return model


def test_an_adapted_model_starts_as_the_plain_one_and_trains_only_what_it_should(inputs):
    model = Model()
    expected, names = model(*inputs), dict(model.named_parameters()).keys()
    add_lora(model, RANK, ALPHA)
    assert torch.equal(model(*inputs), expected)
    assert names <= dict(model.named_parameters()).keys()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    # three image blocks (qkv, proj), three text layers (four maps), two pairs (three maps one way, four the other)
    adapted = 3 * 2 + 3 * 4 + 2 * (3 + 4)
    maps = {name for name in trainable if name.startswith("backbone.fusion.caption_maps")}
    assert len(trainable - maps) == 2 * adapted + 2
    assert trainable - maps - {"head.weight", "head.bias"} == {name for name in trainable if "lora_" in name}
    model(*inputs).square().mean().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name in trainable - maps)
    again = Model()
    add_lora(again, RANK, ALPHA)
    for name, tensor in again.state_dict().items():  # drawn alike, whatever was drawn in between
        assert torch.equal(tensor, model.state_dict()[name])


def test_peft_computes_the_same(trained, inputs):
    import peft  # takes seconds

    theirs, options = Model(), {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0}
    config = peft.LoraConfig(target_modules=rf"backbone\..*\.({'|'.join(PROJECTIONS)})", **options)
    # a convolution is called `proj` too: peft would adapt it
    config.exclude_modules = r".*patch_embed.*"
    peft.inject_adapter_in_model(config, theirs)
    adapted = {name for name, module in trained.named_modules() if isinstance(module, LoraLinear)}
    known = dict(theirs.named_modules())
    assert {name for name in adapted if f"{name}.lora_A.default" in known} == adapted
    assert sum(name.endswith(".lora_A.default") for name in known) == len(adapted)
    with torch.no_grad():
        for name in adapted:
            known[f"{name}.lora_A.default"].weight.copy_(trained.get_submodule(name).lora_down)
            known[f"{name}.lora_B.default"].weight.copy_(trained.get_submodule(name).lora_up)
    torch.testing.assert_close(trained(*inputs), theirs(*inputs), atol=1e-6, rtol=1e-5)


def test_merged_weights_are_a_plain_model_with_equal_outputs(trained, inputs):
    merged = merge_lora(trained.state_dict(), ALPHA, RANK)
    plain = Model()
    assert not torch.allclose(plain(*inputs), trained(*inputs), atol=1e-2)
    plain.load_state_dict(merged)  # strict: no adapter is left
    torch.testing.assert_close(plain(*inputs), trained(*inputs), atol=1e-5, rtol=0)
    assert all(torch.equal(merged[name], tensor) for name, tensor in merge_lora(merged, ALPHA, RANK).items())


def test_plain_weights_load_into_an_adapted_model(inputs):
    source, model = Model(), Model()
    for parameter in source.parameters():
        parameter.data += 0.1
    add_lora(model, RANK, ALPHA)
    before = copy.deepcopy(model.state_dict())
    report = load_weights(model, source.state_dict())
    assert torch.equal(model(*inputs), source(*inputs))
    assert set(report.new) == {name for name in before if "lora_" in name}
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in report.new)
