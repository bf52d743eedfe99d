"""The stage-1 loader on photographs of ordinary size, beside decoding and resizing alone on the same cores."""

import io
import multiprocessing
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmark_common import BenchConfig
from fiber.countdown import Countdown
from fiber.data.collate import collate
from fiber.data.convert.writer import write_dataset
from fiber.data.loader import make_loader
from fiber.data.order import MixedStream, Source
from fiber.data.records import Sample
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shards import ShardSet
from fiber.images.resize import load_image
from fiber.tasks.pretrain import PretrainSample

WIDTH, HEIGHT = 500, 375
QUALITY, CONTRAST = 85, 45  # together: 68 kB per image
WORDS = ("a", "red", "green", "dog", "cat", "tree", "stands", "near", "the", "left", "of", "house", "under", "people")


def run(config: BenchConfig) -> dict:
    """Images/s of the loader with `data.workers` workers over `bench.samples` samples of `bench.images` images, of
    decoding and resizing alone in as many processes, and resident memory of all processes along the way."""
    options = config.bench
    with tempfile.TemporaryDirectory() as folder:
        samples = make_samples(options.images, config.seed)
        size = [len(data) for sample in samples for _, data in sample.images]
        write_dataset(samples, folder, name="bench", split="train", provenance="generated", licence="MIT")
        texts = (sample.record["captions"][0]["text"] for sample in samples)
        tokenizer = train_bpe(texts, 600, Path(folder) / "tokenizer")
        make_sample = PretrainSample(
            tokenizer, config.image_size, config.max_text, config.pretrain.mask_probability,
            pil_resize=config.data.transform == "pil",
        )  # fmt: skip
        bare = decode_alone(folder, config)
        found = read_through(folder, make_sample, config)
        again = decode_alone(folder, config)
    alone = (bare + again) / 2
    return found | {
        "decode_resize_images_per_second": alone,
        "share_of_decode_resize": found["images_per_second"] / alone,
        "mean_file_bytes": float(np.mean(size)),
        "workers": config.data.workers,
    }


def make_samples(count: int, seed: int) -> list[Sample]:
    """Images with the spectrum of photographs (power falls as frequency to the 2.4), about 68 kB each, with a
    caption of eleven words. A few are drawn; the others are these, rolled round their edges."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    envelope = np.maximum(frequency, 1 / WIDTH) ** -1.2
    drawn = []
    for _ in range(min(count, 20)):
        noise = rng.standard_normal((4, HEIGHT, WIDTH), dtype=np.float32)
        noise = noise[:3] + 3 * noise[3]  # channels of a photograph go together
        pixels = np.fft.irfft2(np.fft.rfft2(noise) * envelope, s=(HEIGHT, WIDTH))
        drawn.append((pixels / pixels.std() * CONTRAST + 128).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    samples = []
    for number in range(count):
        pixels = np.roll(drawn[number % len(drawn)], rng.integers(WIDTH, size=2), axis=(0, 1))
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=QUALITY)
        record = {"image_id": f"bench_{number}", "width": WIDTH, "height": HEIGHT, "source": "bench"}
        record["captions"] = [{"text": " ".join(rng.choice(WORDS, 11))}]
        samples.append(Sample(f"bench{number:06d}", [("jpg", file.getvalue())], record))
    return samples


def read_through(folder: str, make_sample: PretrainSample, config: BenchConfig) -> dict:
    """Images/s and resident memory of the loader, after a first tenth that warms it up."""
    size = config.train.micro_batch
    stream = MixedStream(
        [Source(ShardSet(folder), "captions")], seed=config.seed, global_batch=size,
        window_shards=config.data.window_shards,
    )  # fmt: skip
    batches = make_loader(stream, make_sample, collate, micro_batch=size, workers=config.data.workers)
    steps = max(config.bench.samples // size, 10)
    resident = []
    start, warm = time.perf_counter(), steps // 10
    for step, batch in enumerate(Countdown("reading", steps, "batches").over(islice(batches, steps))):
        if step == warm:
            start = time.perf_counter()
            resident.append(resident_memory())
        del batch
    seconds = time.perf_counter() - start
    resident.append(resident_memory())
    return {
        "samples": steps * size,
        "images_per_second": (steps - warm - 1) * size / seconds,
        "resident_memory": {"after_a_tenth": resident[0], "at_the_end": resident[1]},
    }


def decode_alone(folder: str, config: BenchConfig) -> float:
    """Images/s that `data.workers` processes decode and resize from memory, nothing else done with them."""
    shards, processes = ShardSet(folder), max(config.data.workers, 1)
    images = [shards.read(i).images[0][1] for i in range(min(len(shards), 1000))]
    pil_resize = config.data.transform == "pil"
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes + 1)
    workers = [
        context.Process(target=_decode, args=(images, config.image_size, pil_resize, barrier))
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - start
    for worker in workers:
        worker.join()
    return processes * len(images) / seconds


def _decode(images: list[bytes], size: int, pil_resize: bool, barrier: multiprocessing.Barrier) -> None:
    import torch

    torch.set_num_threads(1)
    for data in images[:20]:
        load_image(data, size, pil_resize)
    barrier.wait()
    for data in images:
        load_image(data, size, pil_resize)
    barrier.wait()


def resident_memory() -> int:
    """Bytes of this process and its children, memory that they share counted once (proportional set size)."""
    me = psutil.Process()
    return sum(process.memory_full_info().pss for process in (me, *me.children(recursive=True)))
