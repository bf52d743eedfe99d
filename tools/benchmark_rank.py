"""Ranking of a gallery, five texts an image, both ways: time, and how far memory grows with the gallery."""

import time

import torch
from torch.nn.functional import normalize

from benchmark_common import BenchConfig
from fiber import distributed
from fiber.cards import peak_memory
from fiber.evaluation.metrics.ranking import rank_candidates

TEXTS = 5  # an image


def run(config: BenchConfig) -> dict:
    """Of half of `bench.gallery` images and of all: seconds, and by how many MB the peak of memory grew."""
    found = {}
    for images in (config.bench.gallery // 2, config.bench.gallery):
        before, began = peak_memory(distributed.device()), time.perf_counter()
        rank_both_ways(images, config)
        grown = (peak_memory(distributed.device()) - before) / 2**20
        found[f"{images}_images"] = {"seconds": time.perf_counter() - began, "grown_mb": grown}
    return found


def rank_both_ways(images: int, config: BenchConfig) -> None:
    """Random unit features of the configured width."""
    generator = torch.Generator().manual_seed(config.seed)
    gallery, texts = (
        normalize(torch.randn(size, config.model.head_width, generator=generator)).to(distributed.device())
        for size in (images, TEXTS * images)
    )
    number = torch.arange(images, device=gallery.device)
    owner = number.repeat_interleave(TEXTS)
    keep = config.eval.rerank_k or 10
    rank_candidates(gallery, texts, number, owner, keep)
    rank_candidates(texts, gallery, owner, number, keep)
