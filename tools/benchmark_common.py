"""What the benchmarks share: their options, repeated timing, memory, and a description of the machine."""

import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import median

import torch
from torch import Tensor

from fiber import distributed
from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.coarse.mlm import IGNORED
from fiber.coarse.model import CoarseModel
from fiber.config.stage1 import Stage1Config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PAD = 1


@dataclass(frozen=True)
class BenchOptions:
    """`repeats` timed runs after `warmup` others. `bf16`: a training step in bfloat16 in turn with the others.
    `vocabulary`: ids of the model. Of `loader`: `images` images, `samples` read of them. Of `index`: `index_samples`
    samples of the set. Of `rerank`: pairs in all and at once. Of `rank`: images of the gallery."""

    repeats: int = 5
    warmup: int = 1
    bf16: bool = False
    vocabulary: int = 50265
    images: int = 2000
    samples: int = 20000
    index_samples: int = 10_000_000
    pairs: int = 96
    pair_batch: int = 24
    gallery: int = 20_000


@dataclass(frozen=True)
class BenchConfig(Stage1Config):
    """A stage-1 configuration and the options of a measurement."""

    bench: BenchOptions = field(default_factory=BenchOptions)


def build_model(config: BenchConfig) -> CoarseModel:
    """The configured model on this machine's device, in the configured precision, gates open."""
    backbone = build_backbone(config.model, config.bench.vocabulary, PAD, config.max_text)
    model = CoarseModel(backbone, head_width=config.model.head_width, vocab_size=config.bench.vocabulary)
    initialise(model, "fan_in", config.seed)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.5)
    return model.to(distributed.device(), DTYPES[config.train.precision])


def make_batch(config: BenchConfig, size: int) -> dict:
    """A stage-1 batch of noise: different images, full texts, the usual share of masked tokens."""
    generator = torch.Generator().manual_seed(config.seed)
    shape = (size, 3, config.image_size, config.image_size)
    ids = torch.randint(4, config.bench.vocabulary - 1, (size, config.max_text), generator=generator)
    chosen = torch.rand(ids.shape, generator=generator) < config.pretrain.mask_probability
    chosen[:, 1] = True
    batch = {
        "images": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        "ids": ids,
        "mask": torch.ones_like(ids),
        "masked_ids": torch.where(chosen, config.bench.vocabulary - 1, ids),
        "mlm_labels": torch.where(chosen, ids, IGNORED),
        "image_id": torch.arange(size),
        "uniform": torch.rand(size, 2, generator=generator, dtype=torch.float64),
        "step": config.train.steps,
    }
    device = distributed.device()
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}


def compare(functions: dict[str, Callable[[], object]], options: BenchOptions) -> dict[str, dict[str, float]]:
    """Median seconds, processor seconds (which a busy machine does not stretch) and peak memory (bytes) of each
    function, called in turn so that what slows one slows all."""
    wall: dict[str, list[float]] = {name: [] for name in functions}
    cpu: dict[str, list[float]] = {name: [] for name in functions}
    peaks: dict[str, int] = {}
    for repeat in range(options.warmup + options.repeats):
        for name, function in functions.items():
            reset_peak()
            start = time.process_time()
            elapsed = timed(function)
            peaks.setdefault(name, peak_memory())  # of the first call: the process's high-water mark never falls
            if repeat >= options.warmup:
                wall[name].append(elapsed)
                cpu[name].append(time.process_time() - start)
    return {
        name: {"seconds": median(wall[name]), "processor_seconds": median(cpu[name]), "peak_memory": peaks[name]}
        for name in functions
    }


def ratios(slow: dict[str, float], fast: dict[str, float]) -> dict[str, float]:
    """How many times faster one measurement of `compare` is, by the clock and by the processor's time."""
    return {
        "time_ratio": slow["seconds"] / fast["seconds"],
        "processor_time_ratio": slow["processor_seconds"] / fast["processor_seconds"],
    }


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call, the device's work included."""
    start = time.perf_counter()
    function()
    if distributed.device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def reset_peak() -> None:
    if distributed.device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """Bytes: on CUDA since `reset_peak`, on the CPU the most resident memory of the process so far."""
    if distributed.device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> dict[str, object]:
    """Processor or card, threads and versions."""
    device = distributed.device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else _processor()
    versions = {package: version(package) for package in ("torch", "deepspeed", "transformers", "simplejpeg")}
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()
