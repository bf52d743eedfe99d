"""Structural costs against the published arithmetic and against counts by hand."""

import pytest
import torch
from torch import nn

from fiber.backbone.build import build_backbone
from fiber.cards import card_peak, peak_flops
from fiber.coarse.model import CoarseModel
from fiber.config.base import ImageTowerConfig, ModelConfig, TextTowerConfig
from fiber.fine.model import FiberDetector
from fiber.tasks.flops import PairCost, count, image_cost, pair_cost
from fiber.training import speed
from fiber.training.speed import SpeedMeter


def test_a_linear_map_and_a_convolution_cost_two_flop_a_multiply_add():
    assert count(nn.Linear(5, 7), torch.zeros(3, 5))[1] == 2 * 3 * 5 * 7
    assert count(nn.Conv2d(3, 8, 4, 4), torch.zeros(1, 3, 16, 12))[1] == 2 * (4 * 3) * 8 * 3 * 16


def test_fiber_base_costs_what_the_analysis_of_the_paper_says():
    """Analytic GMACs at 384 px and 40 tokens: Swin-B 47.1, a fused forward 55.4, a step 126.6 with shared prefixes
    and 273.6 without. The analysis rounds its parts and puts the word head at all 40 positions; ours, at 6 of 40."""
    model = CoarseModel(build_backbone(ModelConfig(), 50265, 1, 40), head_width=768, vocab_size=50265)
    weights = [p.data_ptr() for p in model.parameters()]
    cost = pair_cost(model, 384, 40, masked_tokens=6)
    gmac = {name: getattr(cost, name) / 2e9 for name in ("match", "shared", "five_passes")}
    assert (cost.image_prefix + cost.image_tail) / 2e9 == pytest.approx(47.1, rel=0.005)
    assert gmac["match"] == pytest.approx(55.4, rel=0.005)
    assert gmac["shared"] == pytest.approx(126.6, rel=0.01)
    assert gmac["five_passes"] == pytest.approx(273.6, rel=0.01)
    assert [p.data_ptr() for p in model.parameters()] == weights
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_cost_equals_the_count_of_a_real_forward():
    config = ModelConfig(
        image=ImageTowerConfig(embed_dim=8, depths=(1, 2), heads=(1, 2), window=4),
        text=TextTowerConfig(width=16, layers=4, heads=2, intermediate=32),
        num_fused=3,
    )
    model = CoarseModel(build_backbone(config, 40, 1, 6), head_width=12, vocab_size=40).train()
    cost = pair_cost(model, 32, 6, masked_tokens=2)
    images, ids = torch.zeros(5, 3, 32, 32), torch.full((5, 6), 4)

    def match() -> torch.Tensor:
        return model.fuse(model.image_prefix(images), model.text_prefix(ids, torch.ones_like(ids))).cls

    assert count(match)[1] == 5 * cost.match
    assert cost.words == 2 * 2 * (12 * 12 + 12 * 40)
    assert model.training


def detector(**image) -> FiberDetector:
    config = ModelConfig(
        image=ImageTowerConfig(embed_dim=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4), window=2, **image),
        text=TextTowerConfig(width=16, layers=3, heads=2, intermediate=32),
        num_fused=2,
    )
    small = {"channels": 16, "head_channels": 8, "head_blocks": 2, "groups": 4}
    return FiberDetector(build_backbone(config, 40, 1, 6, fine=True), **small)


def test_an_image_costs_the_count_of_a_real_forward():
    """Of one image 64 wide and 96 high, although only squares of 64 and 128 were counted: their windows and levels
    have no padding, so the cost is linear in the area but for the coarsest levels."""
    model = detector().train()
    cost = image_cost(model, (64, 128), 6)
    for height, width, tolerance in ((64, 64, 0.0), (128, 128, 0.0), (96, 64, 0.02)):
        images, ids = torch.zeros(3, 3, height, width), torch.full((3, 6), 4)
        sizes = torch.tensor([[height, width]] * 3)
        real = count(model.eval(), images, sizes, ids, torch.ones_like(ids))[1]
        assert 3 * cost(images.shape) == pytest.approx(real, rel=tolerance, abs=0.5), (height, width)


def test_the_dynamic_head_costs_what_its_shapes_say():
    """By hand, for the five levels of a 64 px square; deformable convolutions as ordinary ones."""
    model = detector().eval()
    head = {"box": 4, "centerness": 1}
    cells = [8 * 8, 4 * 4, 2 * 2, 1, 1]
    steer, deform = 2 * 9 * 27, 2 * 9 * 8  # a multiply-add for each tap: offsets and masks; a channel out
    expected = 0
    for channels in (16, 8):  # of the two blocks' inputs
        for level, here in enumerate(cells):
            expected += steer * channels * here  # offsets and masks of a level
            expected += deform * channels * here  # the level itself
            expected += deform * channels * here if level > 0 else 0  # from the finer level, on this grid
            expected += deform * channels * cells[level + 1] if level + 1 < len(cells) else 0  # on the coarser grid
            branches = 1 + (level > 0) + (level + 1 < len(cells))
            expected += 2 * 8 * branches + 2 * (8 * 2 + 2 * 32)  # scale attention, dynamic ReLU
    expected += sum(2 * 8 * out * here for out in head.values() for here in cells)
    # text and its alignment; the product of the tokens with one vector is none of matrices
    expected += 2 * 6 * 16 * 8 + sum(2 * here * 8 * 6 for here in cells)
    levels = [torch.zeros(1, 16, side, side) for side in (8, 4, 2, 1, 1)]
    assert count(model.head, levels, torch.zeros(1, 6, 16))[1] == expected


def test_a_step_is_the_sum_of_its_parts():
    cost = PairCost(image_prefix=10_000, text_prefix=1_000, image_tail=100, text_tail=10, fusion=1, words=0)
    assert (cost.shared, cost.five_passes, cost.match) == (12_114, 55_114, 11_001)


def test_a_cpu_has_no_peak():
    assert peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("Tesla V100-SXM2-32GB", 125.0),
        ("NVIDIA RTX 6000 Ada Generation", 364.0),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_card_is_known_by_its_whole_name(name, peak):
    assert card_peak(name) == peak


def test_the_cost_is_counted_when_the_log_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the model as it was: what ZeRO has made of its parameters meanwhile does not matter. The meter divides the
    FLOP of all passes by the seconds of all steps."""
    model = detector()
    cost, asked = image_cost(model, (64, 128), 6), []
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    monkeypatch.setattr(speed.time, "perf_counter", iter(range(100)).__next__)
    meter = SpeedMeter(3, 6, lambda shape: asked.append(shape) or cost(shape))
    for side in (64, 128):
        meter.begin()
        meter.fetched([{"images": torch.empty(3, 3, side, side)}] * 2)
        meter.end()
    assert asked == []
    figures = meter.read()
    assert figures["seconds/step"] == 2  # a tick for the data, one for computing
    both = sum(cost(torch.Size([3, 3, side, side])) for side in (64, 128))
    assert figures["tflops"] == pytest.approx(3 * 3 * 2 * both / (2 * 2) / 1e12)
