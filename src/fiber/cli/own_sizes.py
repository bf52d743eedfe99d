"""Settings for one's own data, each with its reason.

The rules join measured ends: the small recipes of this project on a few hundred images, and the published ones of
FIBER-B on many. Every key that the user gives wins, and what follows from it follows from his value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fiber.cli.own_facts import Machine, SetSizes
from fiber.weights.export_config import ExportConfig

SMALL, LARGE, NARROW = 24, 128, 64  # channels of the first image stage: small models here, FIBER-B, the border
SMALL_TOWERS: dict[str, Any] = {
    "model.image.embed_dim": 24,
    "model.image.depths": [2, 2, 2, 2],
    "model.image.heads": [2, 4, 8, 16],
    "model.image.window": 4,
    "model.image.drop_path": 0.0,
    "model.text.width": 96,
    "model.text.layers": 5,
    "model.text.heads": 4,
    "model.text.intermediate": 384,
    "model.text.dropout": 0.0,
    "model.num_fused": 4,
    "model.head_width": 96,
    "model.init": "fan_in",
}
SMALL_HEAD: dict[str, Any] = {
    "detector.channels": 64,
    "detector.head_channels": 64,
    "detector.head_blocks": 2,
    "detector.anchor_sizes": [24, 48, 96],
    "detector.strides": [8, 16, 32],
    "detector.drop_block": 0.0,
    "detector.log_scale": -2.5,
}


@dataclass
class Settings:
    """Keys as they come together: `given` by the user (flat, dotted), `chosen` here, with reasons."""

    given: Mapping[str, Any]
    chosen: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def choose(self, key: str, value: Any, reason: str = "") -> Any:
        """The user's value of `key`, or else `value`, which is chosen; without a reason it is not told."""
        if key in self.given:
            return self.given[key]
        self.chosen[key] = value
        if reason:
            self.reasons[key] = reason
        return value

    def value(self, key: str, default: Any) -> Any:
        """What `key` is so far, or else `default`."""
        return self.given.get(key, self.chosen.get(key, default))

    def overrides(self) -> list[str]:
        """`key=value` of all that is chosen."""
        return [f"{key}={json.dumps(value)}" for key, value in self.chosen.items()]

    def lines(self) -> list[str]:
        """What is chosen and why, a line each."""
        return [f"  {key}={json.dumps(self.chosen[key])}: {reason}" for key, reason in self.reasons.items()]


def between(channels: int, small: float, large: float) -> float:
    """A learning rate between that of the small models and FIBER-B's, on a line of logarithms; two digits."""
    share = math.log(channels / SMALL) / math.log(LARGE / SMALL)
    return float(f"{small * (large / small) ** min(max(share, 0.0), 1.0):.1e}")


def rounded(value: float, to: int = 32) -> int:
    """The nearest multiple, but at least two."""
    return max(round(value / to), 2) * to


def size_of_batch(settings: Settings, wanted: int, images: int, fits: int, machine: Machine) -> int:
    """Choose global batch, micro-batch and accumulation so that they multiply -> the global batch. `wanted`: by the
    size of the set; `fits`: samples of a forward pass that the memory of a rank holds."""
    given, ranks = settings.given, machine.ranks
    micro, passes = given.get("train.micro_batch"), given.get("train.accumulation")
    unit = ranks * (micro or 1) * (passes or 1)
    total = max(min(wanted, images) // unit, 1) * unit
    reason = f"for {images} training images" + (f" on {ranks} ranks" if ranks > 1 else "")
    total = settings.choose("train.global_batch", total, reason)
    share = max(total // ranks // (passes or 1), 1)
    micro = settings.choose(
        "train.micro_batch",
        max(n for n in range(1, share + 1) if share % n == 0 and n <= max(fits, 1)),
        f"memory for {fits} at a time: {machine}",
    )
    rest = max(total // ranks // micro, 1)
    settings.choose("train.accumulation", rest, "the passes of a step that make the batch" if rest > 1 else "")
    return total


def length(settings: Settings, samples: float, batch: int, reason: str, val: bool, figure: str) -> int:
    """Choose the number of steps, and what goes with it: evaluations, log, averaging, the figure that chooses."""
    steps = settings.choose("train.steps", max(math.ceil(samples / batch), 100), reason)
    every = max(steps // 10, min(steps, 25)) if settings.value("eval.data", ()) else 0
    reason = f"evaluations: {steps // every}" if every else ""
    every = settings.choose("eval.every", every, reason)
    settings.choose("train.save_every", every or max(min(steps // 10, 1000), 1))
    settings.choose("train.log_every", min(max(steps // 50, 1), 20))
    ema = 0.999 if steps >= 5000 else 0.99 if steps >= 500 else 0.0
    settings.choose("train.ema", ema, "weights are averaged over the last steps" if ema else "")
    if val and every:
        settings.choose("train.best", figure, "the weights of the best evaluation on val are kept")
    return steps


def precision(settings: Settings, machine: Machine, regions: bool = False) -> float:
    """Choose the number format -> bytes of an activation over those of fp32. With regions, bf16 wins nothing on a CPU
    (docs/shapes.md)."""
    half = (machine.card or not regions) and settings.value("train.zero_stage", 1) > 0  # half needs ZeRO
    kind = "bf16" if machine.bf16 and half else "fp16" if machine.card and half else "fp32"
    kind = settings.choose("train.precision", kind, "what this machine computes fast and safely")
    return 1.0 if kind == "fp32" else 0.6


Needs = Callable[[Settings], tuple[int, int]]
"""Bytes of weights and optimizer, and of the activations of a sample, with the settings so far."""


def samples_that_fit(settings: Settings, needs: Needs, machine: Machine, scale: float) -> int:
    """Samples of a forward pass that the memory holds; recomputing activations where not even one fits."""

    def fit() -> int:
        state, sample = needs(settings)
        return int(max(machine.memory - state, 0) / (sample * scale))

    fits = fit()
    if fits < 1 and "model.checkpointing" not in settings.given:
        settings.choose("model.checkpointing", True, f"without it, one sample does not fit in {machine}")
        fits = fit()
    return fits


def detector(
    settings: Settings, own: SetSizes, val: bool, model: ExportConfig, machine: Machine, needs: Needs, fit_all: bool
) -> None:
    """Settings of `own_detector`. `fit_all`: whether all class names fit in one caption."""
    channels = model.model.image.embed_dim
    narrow = channels < NARROW
    if model.stage == "coarse" and narrow:
        for key, value in SMALL_HEAD.items():
            settings.choose(key, value)
    _region_sizes(settings, own, model, machine)
    settings.choose("regions.classes", "all" if fit_all else "sampled", "" if fit_all else "too many for one caption")
    settings.choose("regions.frozen_stages", 0 if narrow else 1)
    settings.choose("optim.text_multiplier", 1.0 if narrow else 0.1)
    settings.choose("optim.gate_multiplier", 50.0 if narrow else 1.0)
    fits = samples_that_fit(settings, needs, machine, precision(settings, machine, regions=True))
    # Few images want many updates: 205 of cells learn more in batches of 4 than of 8 (docs/photographs.md).
    wanted = 4 if own.images < 500 else 8 if own.images < 2000 else 16 if own.images < 20_000 else 32
    batch = size_of_batch(settings, wanted, own.images, fits, machine)
    samples = max(1500 * (own.images / 20) ** 0.75, 1000)
    epochs = samples / own.images
    length(settings, samples, batch, f"{epochs:.0f} times each image; the fewer images, the more often", val, "ap")
    settings.choose("optim.lr", between(channels, 1e-3, 1e-4), f"for a model of {channels} channels")
    settings.choose("eval.batch", max(min(2 * fits, 16), 1))


def _region_sizes(settings: Settings, own: SetSizes, model: ExportConfig, machine: Machine) -> None:
    """Choose the sizes of images: so large that the smallest class fills the smallest anchor, but never larger than
    the images are, or, up to twice as large, than the model was trained with."""
    anchors = model.detector.get("anchor_sizes") or settings.chosen.get("detector.anchor_sizes") or [64]
    trained, most = model.image_size if model.stage == "fine" else 64, 800 if machine.card else 352
    trained = min(trained, 2 * own.side)
    wanted = max(anchors[0] / own.object_share, trained)
    side = rounded(min(wanted + 15, most, max(own.side, trained)))
    seen = side * own.object_share
    why = f"the smallest class, {own.smallest}, is then about {seen:.0f} px large (smallest anchor: {anchors[0]:g})"
    if not machine.card and wanted > side + 16 and side == most:
        why += "; larger is better, and slow without a card"
    side = settings.choose("regions.test_side", side, why)
    parts = (0.6, 0.7, 0.8, 0.9, 1.0) if side >= 480 else (0.75, 0.875, 1.0)
    drawn = sorted({min(rounded(side * part), side) for part in parts})
    drawn = settings.choose("regions.short_sides", drawn, "one is drawn for each image")
    settings.choose("regions.max_side", max(rounded(5 / 3 * side), *drawn))


def image_task(
    settings: Settings,
    task: str,
    own: SetSizes,
    val: bool,
    model: ExportConfig | None,
    machine: Machine,
    needs: Needs,
    tokens: list[int],
) -> None:
    """Settings of `own_retrieval`, `own_caption` and `own_pretrain`. `tokens`: lengths of captions, with special
    ones; `model` None: from nothing, or from towers (which the configuration names)."""
    image = model.model.image if model else None
    channels = image.embed_dim if image else settings.value("model.image.embed_dim", LARGE)
    narrow = channels < NARROW
    longest = int(np.quantile(tokens, 0.99))
    limit = min(max(model.max_text if model else 0, 64), 8 * math.ceil(longest / 8))
    settings.choose("max_text", limit, f"99 of 100 captions have at most {longest} tokens")
    window = settings.value("model.image.window", image.window if image else 12)
    stages = len(settings.value("model.image.depths", image.depths if image else (2, 2, 18, 2)))
    size, why = window * 4 * 2 ** (stages - 1), "the last stage of the image tower is then one window"
    if own.side <= size // 2:
        size, why = size // 2, "the images are no larger"
    if model and model.stage == "coarse" and (own.side <= model.image_size or size <= model.image_size):
        size, why = model.image_size, "what the model was trained with"
    settings.choose("image_size", size, why)
    fits = samples_that_fit(settings, needs, machine, precision(settings, machine))
    wanted = max(2 ** int(math.log2(own.images / 8)), 8) if own.images >= 8 else own.images
    batch = size_of_batch(settings, min(wanted, 256 if machine.card else 64), own.images, fits, machine)
    epochs = 10 * max((20_000 / own.annotations) ** 0.5, 1)
    figure = {"retrieval_itm": "reranked_r_mean", "caption": "cider"}.get(task, "r_mean")
    reason = f"{epochs:.0f} times each of {own.annotations} captions; the fewer, the more often"
    steps = length(settings, epochs * own.annotations, batch, reason, val, figure)
    if model is None and narrow:
        settings.choose("pretrain.itc_only_steps", int(0.3 * steps), "from nothing, images and texts meet first")
        settings.choose("pretrain.random_negative_steps", int(0.6 * steps))
        settings.choose("pretrain.mask_probability", 0.3)
    settings.choose("optim.gate_multiplier", (50.0 if model is None else 10.0) if narrow else 1.0)
    rates = (1e-3, 5e-5) if model is None else (5e-4, 2e-5)
    settings.choose("optim.lr", between(channels, *rates), f"for a model of {channels} channels")
    settings.choose("optim.cross_modal_multiplier", 1.0 if narrow else 5.0)
    settings.choose("optim.head_multiplier", 1.0 if narrow else 5.0)
    settings.choose("eval.batch", max(min(2 * fits, 64), 1))
    if task != "caption":
        settings.choose("eval.rerank_k", min(20, own.images))
