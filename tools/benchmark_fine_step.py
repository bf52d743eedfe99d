"""A training step of stage 2, forward and backward, on images of noise."""

import copy
from collections.abc import Callable

import torch

from benchmark_ceiling import matmul_ceiling
from benchmark_common import DTYPES, compare, ratios
from benchmark_detect import DetectBenchConfig, build_model
from fiber import distributed
from fiber.cards import peak_flops
from fiber.fine.losses import LossWeights
from fiber.tasks.flops import image_cost
from fiber.tasks.regions import GroundingTask

BOXES = 8  # in an image, each of a phrase of its own


def run(config: DetectBenchConfig) -> dict:
    """Seconds, images/s, FLOP/s and memory of a step on `train.micro_batch` squares of the largest training side
    with full captions. What `regions.frozen_stages` freezes is counted as if it were trained."""
    regions, size = config.regions, config.train.micro_batch
    weights = LossWeights(regions.token_weight, regions.box_weight, regions.centerness_weight)
    task = GroundingTask(build_model(config), weights)
    task.model.tune("full", regions.frozen_stages)
    task.train()
    side = max(regions.short_sides)
    batch = noise(config, side, size)
    forward = image_cost(task.model, (side, side), config.max_text)(batch["images"].shape)

    def step() -> None:
        task.zero_grad()
        sum(task(batch)[0].values()).backward()

    forms: dict[str, Callable[[], None]] = {"step": step}
    if config.bench.bf16:
        half = copy.deepcopy(task).bfloat16()
        forms["step_bf16"] = lambda: sum(half(batch)[0].values()).backward()
    timings = compare(forms, config.bench)
    timing = timings["step"]
    device = distributed.device()
    ceiling = peak_flops(device) or matmul_ceiling(device, DTYPES[config.train.precision])
    speed = 3 * forward * size / timing["seconds"]
    return timing | {
        "batch": size,
        "side": side,
        "images_per_second": size / timing["seconds"],
        "forward_gmac_per_image": forward / 2e9,
        "flops_per_second": speed,
        "share_of_ceiling": speed / ceiling,
        "ceiling_flops_per_second": ceiling,
        **({"bf16": timings["step_bf16"] | ratios(timing, timings["step_bf16"])} if config.bench.bf16 else {}),
    }


def noise(config: DetectBenchConfig, side: int, size: int) -> dict:
    """A stage-2 batch: `size` squares, full captions, `BOXES` boxes an image with a token each."""
    draw = torch.Generator().manual_seed(config.seed)
    count = size * BOXES
    corner = torch.rand(count, 2, generator=draw) * side * 0.6
    extent = side * (0.1 + 0.3 * torch.rand(count, 2, generator=draw))
    ids = torch.randint(4, config.bench.vocabulary, (size, config.max_text), generator=draw)
    tokens = torch.zeros(count, config.max_text, dtype=torch.bool)
    tokens[torch.arange(count), 1 + torch.arange(count) % BOXES] = True
    batch = {
        "images": torch.randint(0, 256, (size, 3, side, side), generator=draw, dtype=torch.uint8),
        "sizes": torch.tensor([[side, side]] * size),
        "ids": ids,
        "mask": torch.ones_like(ids),
        "boxes": torch.cat([corner, corner + extent], 1),
        "box_image": torch.arange(size).repeat_interleave(BOXES),
        "box_tokens": tokens,
    }
    return {name: tensor.to(distributed.device()) for name, tensor in batch.items()}
