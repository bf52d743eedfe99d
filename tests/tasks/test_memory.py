"""What autograd keeps, against sums by hand and against the sizes it must grow with."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fiber.backbone.build import build_backbone
from fiber.coarse.model import CoarseModel
from fiber.config.base import ImageTowerConfig, ModelConfig, TextTowerConfig, TowersConfig
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import DetectorConfig, Stage2Config
from fiber.tasks import memory
from tiny_exports import MODEL

TOWERS = TowersConfig(image=MODEL.image, text=MODEL.text, num_fused=2)
DETECTOR = DetectorConfig(
    channels=16, head_channels=16, head_blocks=1, groups=4, anchor_sizes=(24, 48, 96), strides=(8, 16, 32)
)


def test_what_a_small_network_keeps_is_the_sum_by_hand() -> None:
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(10, 20), nn.GELU(), nn.Linear(20, 5)), torch.empty(7, 10)
    # the input (7, 10), what the GELU gets (7, 20), and what it gives (7, 20)
    expected = 4 * 7 * (10 + 20 + 20)
    assert memory._kept_bytes(model, lambda: model(x)) == int(memory.PEAK * expected)
    assert memory._state_bytes(model) == memory.STATE_BYTES * (10 * 20 + 20 + 20 * 5 + 5)


def test_images_cost_by_their_area_and_recomputation_saves() -> None:
    config = Stage2Config(output="x", max_text=16, model=TOWERS, detector=DETECTOR)
    state, small = memory.detector_bytes(config, 300, 64, 64)
    same, large = memory.detector_bytes(config, 300, 128, 128)
    assert state == same > 0
    assert 3 < large / small < 4.5
    towers = TowersConfig(image=MODEL.image, text=MODEL.text, num_fused=2, checkpointing=True)
    again = Stage2Config(output="x", max_text=16, model=towers, detector=DETECTOR)
    assert memory.detector_bytes(again, 300, 128, 128)[1] < 0.5 * large


def test_pairs_cost_by_the_passes_of_the_fused_layers() -> None:
    config = Stage1Config(output="x", image_size=64, max_text=12, model=MODEL)
    one, two, four = (memory.pair_bytes(config, 300, passes)[1] for passes in (1, 2, 4))
    assert two - one > 0
    assert abs((four - two) - 2 * (two - one)) <= 4


def test_a_published_model_needs_what_cards_have() -> None:
    """FIBER-B: its weights and optimizer in fp32 about 4.7 GB; a pair at 384 px between 1 and 2 GB."""
    config = Stage1Config(output="x")
    state, pair = memory.pair_bytes(config, 50_265, 4)
    assert 4e9 < state < 6e9
    assert 1e9 < pair < 3e9


@pytest.mark.parametrize("checkpointing", [False, "selective"])
def test_the_count_is_what_a_real_pass_holds(checkpointing: Any) -> None:
    """Bytes allocated and not freed while a real model runs forward on the CPU, as torch's profiler sees them."""
    image = ImageTowerConfig(embed_dim=32, depths=(2, 2, 2), heads=(2, 4, 8), window=4)
    text = TextTowerConfig(width=64, layers=3, heads=4, intermediate=256)
    towers = ModelConfig(image=image, text=text, num_fused=2, head_width=32, checkpointing=checkpointing)
    config = Stage1Config(output="x", image_size=128, max_text=24, model=towers)
    counted = memory.pair_bytes(config, 300, 2)[1] / memory.PEAK
    model = CoarseModel(build_backbone(towers, 300, 1, 24), head_width=32, vocab_size=300)
    images, ids = torch.rand(1, 3, 128, 128), torch.ones(1, 24, dtype=torch.int64)

    def run() -> list[Any]:
        image_state, text_state = model.image_prefix(images), model.text_prefix(ids, ids)
        fused = [model.fuse(image_state, text_state) for _ in range(2)]
        return [*fused, model.image_embedding(image_state), model.text_embedding(text_state)]

    run()  # what is made once, such as the masks of windows
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        held = run()
    assert len(held) == 4
    assert counted == pytest.approx(sum(event.self_cpu_memory_usage for event in seen.events()), rel=0.1)
