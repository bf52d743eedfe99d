"""AdamW, its parameter groups by name, and the learning rate as a pure function of the step and of what the
evaluations have said."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import unwrap
from typing import Any

import torch
from torch import nn

from fiber.config.base import OptimConfig

ROLES = ("base", "cross_modal", "head", "gate")


def role(name: str) -> str:
    """Which learning-rate multiplier a parameter takes, by its dotted name.

    "gate": the scalars that open the fusion. "cross_modal": all other fusion parameters, and the transforms and
    poolers of the heads. "head": objective and answer heads, pyramid and detection head. "base": towers,
    temperature and everything else.
    """
    parts = name.split(".")
    if parts[-1] == "gate":
        return "gate"
    if "temperature" in parts:
        return "base"
    if "fusion" in parts or "cross_modal" in parts or "contrastive" in parts:
        return "cross_modal"
    return "head" if {"heads", "head", "fpn"} & set(parts[:2]) else "base"  # of either level, in its task or alone


def role_in(name: str, config: OptimConfig) -> str:
    """The role by which a run groups a parameter. Heads that learn at the base rate are in its group: the order of
    summation, and so the last digit of the gradient's norm, is then as it was before heads of detectors had a
    rate."""
    kind = role(name)
    return "base" if kind == "head" and config.head_multiplier == 1 else kind


def label(name: str, config: OptimConfig) -> tuple[str, float]:
    """What the log calls a parameter's learning rate, and its multiplier of `lr`: that of its role, times those of
    the text side and of biases, which the published recipe of stage 2 sets apart."""
    kind = role_in(name, config)
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


def tower_layer(name: str) -> tuple[str, int, int] | None:
    """The layer of a tower that a parameter belongs to, as (tower, stage, layer), ascending from the input; None for
    what is in no layer: output norms, fusion, heads. Embeddings are stage -1; an image merge
    belongs to the first block of the stage that it leads to."""
    match name.partition("backbone.")[2].split("."):
        case ["image", "patch_embed", *_]:
            return "image", -1, 0
        case ["text", "embeddings", *_]:
            return "text", -1, 0
        case ["image", "stages", stage, "blocks", block, *_]:
            return "image", int(stage), int(block)
        case ["image", "stages", stage, "merge", *_]:
            return "image", int(stage) + 1, 0
        case ["text", "layers", layer, *_]:
            return "text", 0, int(layer)
    return None


def layer_multipliers(names: Iterable[str], decay: float) -> dict[str, float]:
    """Layer-wise decay of the learning rate: `decay` for the last layer of each tower, once more for each layer below
    it, for the embeddings last; 1 for what is in no layer."""
    layers = {name: tower_layer(name) for name in names}
    known = {layer for layer in layers.values() if layer is not None}
    above = {layer: sum(other >= layer for other in known if other[0] == layer[0]) for layer in known}
    return {name: 1.0 if layer is None else decay ** above[layer] for name, layer in layers.items()}


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay holds for matrices and kernels: not for biases, norms, temperature and gates (all of them
    one-dimensional), nor for relative-position tables."""
    return parameter.ndim > 1 and "position_bias" not in name


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> list[dict[str, Any]]:
    """Trainable parameters -> groups {"params", "names", "role", "multiplier", "weight_decay", "full_decay"} in a
    fixed order (roles, then the order of the parameters). A frozen parameter is in none, but counts as a layer."""
    named = sorted(named, key=lambda item: ROLES.index(role_in(item[0], config)))
    by_layer = layer_multipliers([name for name, _ in named], config.layer_decay)
    groups: dict[tuple[str, float, bool], dict[str, Any]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            kind, multiplier = label(name, config)
            multiplier *= by_layer[name]
            decay = config.weight_decay if decays(name, parameter) else 0.0
            new = {"params": [], "names": [], "role": kind, "multiplier": multiplier}
            new |= {"weight_decay": decay, "full_decay": decay}
            group = groups.setdefault((kind, multiplier, decays(name, parameter)), new)
            group["params"].append(parameter)
            group["names"].append(name)
    return list(groups.values())


class AdamW(torch.optim.AdamW):
    """AdamW that leaves weights and moments alone while `skip` is set.

    A step whose loss is not finite still has to run through DeepSpeed's backward and step, so that its buffers and
    counters stay in order; only the update must not happen. torch's own two methods are called without their
    wrappers, which import its compiler (a second of processor time) to say that it is not to be used.
    """

    skip = False
    add_param_group = unwrap(torch.optim.AdamW.add_param_group)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if not self.skip:
            unwrap(torch.optim.AdamW.step)(self)


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW over the groups of `model`; the learning rate is set every step by `set_learning_rate`. Fused, on the CPU
    too: one pass over weights and moments in place of several."""
    groups = parameter_groups(model.named_parameters(), config)
    return AdamW(groups, lr=0.0, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=True)


def learning_rate(step: int, steps: int, config: OptimConfig, drops: int = 0) -> float:
    """Base learning rate of update `step` (0-based) of `steps`.

    Linear from warmup_start x lr over the warm-up (so the first update has learning rate 0 by default, as in the
    reference), then linear to 0 at `steps`, or constant with a factor `decay` at each milestone, or ("plateau") for
    each of the `drops` that the evaluations have called for so far (`Selection.drops`).
    """
    warmup = config.warmup if config.warmup >= 1 else config.warmup * steps
    if step < warmup:
        return config.lr * (config.warmup_start + (1 - config.warmup_start) * step / warmup)
    if config.schedule == "linear":
        return config.lr * max(0.0, (steps - step) / max(1.0, steps - warmup))
    if config.schedule == "step":
        drops = sum(step >= share * steps for share in config.milestones)
    return config.lr * config.decay**drops


def weight_decay_factor(step: int, steps: int, config: OptimConfig) -> float:
    """What weight decay is multiplied by at update `step`: `decay` for each milestone of which the share `decay_drop`
    has passed. The release lowers it at 0.667 of a milestone, before the learning rate."""
    if config.decay_drop == 0:
        return 1.0
    return config.decay ** sum(step >= config.decay_drop * share * steps for share in config.milestones)


def apply_schedule(
    optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimConfig, drops: int = 0
) -> dict[str, float]:
    """Give every group its rate and weight decay of update `step`; -> for the log, as `set_learning_rate`. A drop
    takes no group below `min_lr`; one that starts below it stays where it is."""
    lr, factor = learning_rate(step, steps, config, drops), weight_decay_factor(step, steps, config)
    return set_learning_rate(optimizer, lr, factor, config.min_lr * (drops > 0), config.lr)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, lr: float, decay_factor: float = 1.0, floor: float = 0.0, peak: float = 0.0
) -> dict[str, float]:
    """Give every group `lr` times its multiplier, but at least the lower of `floor` and `peak` times its multiplier,
    and its weight decay times `decay_factor`; -> for the log, the rate by role, with layer-wise decay that of its
    highest layer."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        group["lr"] = max(lr * group["multiplier"], min(floor, peak * group["multiplier"]))
        group["weight_decay"] = group["full_decay"] * decay_factor
        name = f"lr/{group['role']}"
        rates[name] = max(rates.get(name, 0.0), group["lr"])
    return rates
