"""A small task with every kind of parameter, in the form that the loop expects, and its batches."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fiber.config.base import TrackingConfig, TrainConfig
from fiber.config.stage1 import Stage1Config
from fiber.dashboards.board import About
from fiber.training.tracking import Tracker


class Regression(nn.Module):
    """A task in the form that the loop expects: a fusion with a gate, a head, a frozen layer and a queue."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.tower = nn.Linear(7, 33)
        self.fusion = nn.ModuleDict({"mix": nn.Linear(33, 33)})
        self.fusion.gate = nn.Parameter(torch.zeros(1))
        self.heads = nn.ModuleDict({"mlm": nn.Linear(33, 5)})
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(3))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.3

    def forward(self, batch: dict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        hidden = self.tower(batch["x"].to(self.tower.weight.dtype)).tanh()
        hidden = hidden + self.fusion.gate * self.fusion["mix"](hidden)
        error = self.frozen(self.heads["mlm"](hidden)).float() - batch["y"]
        loss = error.square().mean()
        self.queue += 1
        return {"fit": 0.5 * loss, "size": 0.1 * hidden.float().square().mean()}, {"loss/fit": loss.detach()}


def batch_of(step: int, rows: int = 4, part: int = 0) -> dict:
    draw = torch.Generator().manual_seed(1000 * step + part)
    keys = [f"s{step}p{part}r{row}" for row in range(rows)]
    return {"x": torch.randn(rows, 7, generator=draw), "y": torch.randn(rows, 5, generator=draw), "keys": keys}


def tracker_of(folder: Path, about: About | None = None, *, start: int = 0, **tracking: Any) -> Tracker:
    """A tracker as a run of four samples per update has it; no dashboard unless `tracking` asks for one."""
    config = Stage1Config(
        output=str(folder),
        tokenizer="none",
        train=TrainConfig(global_batch=4, micro_batch=4),
        tracking=TrackingConfig(project="p", **tracking),
    )
    return Tracker(folder, config, about or About(), start=start)
