"""Small runs of every task for the pretended card: configurations, modules on the card, real batches, an engine."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pretended_card import Card, to_card
from torch import Tensor, nn

from fiber.config.base import ImageTowerConfig, ModelConfig, SourceConfig, TextTowerConfig, TrainConfig, TuningConfig
from fiber.config.stage1 import CaptionConfig, ImageTextDataConfig, RetrievalEvalConfig, Stage1Config
from fiber.config.stage2 import DetectorConfig, RegionConfig, RegionEvalConfig, Stage2Config
from fiber.data.loader import make_loader
from fiber.data.order import MixedStream, Source
from fiber.data.shards import ShardSet
from fiber.data.text import load_tokenizer
from fiber.fine.postprocess import BoxSelection
from fiber.tasks.table import task_of
from fiber.training import loop, state

BATCH = 4
SELECTION = BoxSelection(threshold=0.0, top=60, keep=7)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TEXT = TextTowerConfig(width=32, layers=4, heads=2, intermediate=64, dropout=0.1)
SQUARE = ImageTowerConfig(embed_dim=16, depths=(2, 2, 2), heads=(2, 4, 8), window=3, drop_path=0.1)
PADDED = ImageTowerConfig(embed_dim=16, depths=(2, 2, 2, 2), heads=(2, 2, 4, 8), window=4, drop_path=0.1)
HEAD = {"channels": 16, "head_channels": 16, "head_blocks": 2, "groups": 4}
LEVELS = {"anchor_sizes": (24, 48, 96), "strides": (8, 16, 32)}


def train_config(precision: str, **settings: Any) -> TrainConfig:
    batch = {"global_batch": BATCH, "micro_batch": BATCH}
    return TrainConfig(**{"steps": 10, "precision": precision} | batch | settings)


def coarse_config(sets: Path, output: Path, task: str, field: str, precision: str, **settings: Any) -> Stage1Config:
    """A run of a task at image level on the sets of the fixture `task_sets`."""
    name = {"nlvr2": "pairs", "classification": "classes"}.get(task, "train")
    source = SourceConfig(str(sets / name), field)
    return Stage1Config(
        output=str(output),
        tokenizer=str(sets / "tokenizer"),
        task=task,
        image_size=96,
        max_text=24,
        model=ModelConfig(image=SQUARE, text=TEXT, num_fused=3, head_width=16, init="fan_in"),
        data=ImageTextDataConfig(train=(source,), workers=0),
        eval=RetrievalEvalConfig(data=(source,), batch=BATCH, rerank_k=3),
        train=train_config(precision),
        **settings,
    )


def caption_config(objective: str) -> CaptionConfig:
    return CaptionConfig(objective=objective, samples=2, max_new_tokens=6, beam=3)  # type: ignore[arg-type]


def fine_config(sets: Path, output: Path, field: str, precision: str, mode: str = "full") -> Stage2Config:
    """A run at region level on the scenes of the fixture `task_sets`."""
    source = SourceConfig(str(sets / "train"), field)
    return Stage2Config(
        output=str(output),
        tokenizer=str(sets / "tokenizer"),
        max_text=48,
        model=ModelConfig(image=PADDED, text=TEXT, num_fused=3, init="fan_in"),
        detector=DetectorConfig(**HEAD, **LEVELS),
        regions=RegionConfig(short_sides=(96, 112), max_side=160, test_side=96, figures=1),
        tuning=TuningConfig(mode=mode),  # type: ignore[arg-type]
        data=ImageTextDataConfig(train=(source,), workers=0),  # type: ignore[arg-type]
        eval=RegionEvalConfig(data=(source,), batch=BATCH),
        train=train_config(precision),
    )


def build(config: Any) -> nn.Module:
    """The task's module in the run's precision, gates open, ready to train, on the card."""
    row, tokenizer = task_of(config), load_tokenizer(config.tokenizer)
    module = row.build_module(config, tokenizer)
    for name, parameter in module.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.5)
    if row.prepare is not None:
        row.prepare(module, config, tokenizer, [ShardSet(source.path) for source in config.data.train])
    return to_card(module.to(DTYPES[config.train.precision]).train())


def batches(config: Any) -> Iterator[dict[str, Any]]:
    """The run's micro-batches, on the CPU."""
    row = task_of(config)
    sources = [Source(ShardSet(s.path), s.field, s.weight, row.per(config)) for s in config.data.train]
    stream = MixedStream(sources, seed=0, global_batch=config.train.global_batch, window_shards=1)
    sample = row.build_sample(config, load_tokenizer(config.tokenizer))
    shares = {"micro_batch": config.train.micro_batch, "accumulation": config.train.accumulation}
    return make_loader(stream, sample, row.collate, **shares, rank=0, world=1, workers=0)


class CardEngine:
    """In place of DeepSpeed's: the backward pass is left out (autograd wants a driver for a device of its kind), and
    the norm of the gradient is a number on the card."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, batch: dict[str, Any]) -> Any:
        return self.module(batch)

    def backward(self, loss: Tensor) -> None:
        assert (loss.is_cuda, loss.requires_grad) == (True, True)

    def step(self) -> None: ...

    def zero_optimization_stage(self) -> int:
        return 1

    def get_global_grad_norm(self) -> Tensor:
        return torch.ones((), device="cuda")


class CardRun:
    """What `loop.fetch` and `loop.update` use of a run."""

    request_stop = state.Run.request_stop

    def __init__(self, config: Any, module: nn.Module) -> None:
        self.train, self.engine, self.stop = config.train, CardEngine(module), False
        self.optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
        self.new_faults: list[Any] = []
        self.counters: Counter[str] = Counter()


def train_steps(config: Any, card: Card, steps: int = 2) -> dict[str, float]:
    """The newest losses of a few steps; `card` has counted the last of them."""
    run, source = CardRun(config, build(config)), iter(batches(config))
    for step in range(5, 5 + steps):
        card.reset()
        outcome = loop.update(run, loop.fetch(run, source, step), step)  # type: ignore[arg-type]
    counts = [counter.copy() for counter in (card.waits, card.uploads, card.attention, card.operations)]
    figures = outcome.average()
    card.waits, card.uploads, card.attention, card.operations = counts
    return figures


def evaluate(config: Any, step: int | None = 3) -> dict[str, float]:
    """Figures of the run's evaluation sets by a model of random weights on the card."""
    sets = [(ShardSet(source.path), source.field) for source in config.eval.data]
    return task_of(config).evaluate(config, load_tokenizer(config.tokenizer), build(config), sets, step, lambda: None)
