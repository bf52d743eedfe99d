"""Ranking of a gallery, five texts an image, both ways: time, and how far memory grows with the gallery."""

import resource
import time

import torch
from torch.nn.functional import normalize

from benchmark_common import BenchConfig
from fiber import distributed
from fiber.evaluation.metrics.ranking import rank_candidates

TEXTS = 5  # an image


def run(config: BenchConfig) -> dict:
    """Of half of `bench.gallery` images and of all: seconds, and the growth of the peak of resident memory in MB."""
    found = {}
    for images in (config.bench.gallery // 2, config.bench.gallery):
        before, began = peak(), time.perf_counter()
        rank_both_ways(images, config)
        found[f"{images}_images"] = {"seconds": time.perf_counter() - began, "grown_mb": peak() - before}
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


def peak() -> float:
    """The largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
