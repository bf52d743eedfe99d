"""AdamW, its parameter groups by name, and the learning rate as a pure function of the step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fiber.config import OptimConfig

ROLES = ("base", "cross_modal", "head", "gate")


def role(name: str) -> str:
    """Which learning-rate multiplier a parameter takes, by its dotted name.

    "gate": the scalars that open the fusion. "cross_modal": all other fusion parameters, and the transforms and
    poolers of the heads. "head": objective and answer heads. "base": towers, temperature and everything else.
    """
    parts = name.split(".")
    if parts[-1] == "gate":
        return "gate"
    if "temperature" in parts:
        return "base"
    if "fusion" in parts or "cross_modal" in parts or "contrastive" in parts:
        return "cross_modal"
    return "head" if "heads" in parts else "base"


def label(name: str, config: OptimConfig) -> tuple[str, float]:
    """What the log calls a parameter's learning rate, and its multiplier of `lr`: that of its role, times those of
    the text side and of biases, which the published recipe of stage 2 sets apart."""
    kind = role(name)
    multiplier = {
        "base": 1.0,
        "cross_modal": config.cross_modal_multiplier,
        "head": config.head_multiplier,
        "gate": config.gate_multiplier,
    }[kind]
    words = [kind]
    if config.text_multiplier != 1 and ("backbone.text." in name or "text_to_image" in name):
        words, multiplier = ["text", *words], multiplier * config.text_multiplier
    if config.bias_multiplier != 1 and name.endswith("bias"):
        words, multiplier = [*words, "bias"], multiplier * config.bias_multiplier
    return "_".join(words), multiplier


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay holds for matrices and kernels: not for biases, norms, temperature and gates (all of them
    one-dimensional), nor for relative-position tables."""
    return parameter.ndim > 1 and "position_bias" not in name


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> list[dict[str, Any]]:
    """Trainable parameters -> groups {"params", "names", "role", "multiplier", "weight_decay"} in a fixed order
    (roles, then the order of the parameters). A frozen parameter is in none."""
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in sorted(named, key=lambda item: ROLES.index(role(item[0]))):
        if parameter.requires_grad:
            kind, multiplier = label(name, config)
            decay = decays(name, parameter)
            new = {"params": [], "names": [], "role": kind, "multiplier": multiplier}
            group = groups.setdefault((kind, decay), new | {"weight_decay": config.weight_decay if decay else 0.0})
            group["params"].append(parameter)
            group["names"].append(name)
    return list(groups.values())


class AdamW(torch.optim.AdamW):
    """AdamW that leaves weights and moments alone while `skip` is set.

    A step whose loss is not finite still has to run through DeepSpeed's backward and step, so that its buffers and
    counters stay in order; only the update must not happen.
    """

    skip = False

    def step(self, closure: Any = None) -> None:
        if not self.skip:
            super().step(closure)


def build_optimizer(model: nn.Module, config: OptimConfig, fused: bool) -> AdamW:
    """AdamW over the groups of `model`; the learning rate is set every step by `set_learning_rate`."""
    groups = parameter_groups(model.named_parameters(), config)
    return AdamW(groups, lr=0.0, betas=tuple(config.betas), eps=config.eps, fused=fused or None)


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Base learning rate of update `step` (0-based) of `steps`.

    Linear from warmup_start x lr over the warm-up (so the first update has learning rate 0 by default, as in the
    reference), then either linear to 0 at `steps`, or constant with a factor `decay` at each milestone.
    """
    warmup = config.warmup if config.warmup >= 1 else config.warmup * steps
    if step < warmup:
        return config.lr * (config.warmup_start + (1 - config.warmup_start) * step / warmup)
    if config.schedule == "linear":
        return config.lr * max(0.0, (steps - step) / max(1.0, steps - warmup))
    return config.lr * config.decay ** sum(step >= share * steps for share in config.milestones)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> dict[str, float]:
    """Give every group `lr` times its multiplier; -> the rate by role, for the log."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["multiplier"]
    return {f"lr/{group['role']}": group["lr"] for group in optimizer.param_groups}
