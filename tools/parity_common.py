"""What both parity checks share: the recorded fixture, the table of comparisons, the walk through the backbone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fiber.backbone.attention import padding_bias
from fiber.backbone.fusion import FusionBackbone
from fiber.backbone.windows import unpartition


class Recorded(dict):
    """Recorded tensors that remember which of them were read, so that none is left uncompared unnoticed."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__(tensors)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def unread(self, *known: str) -> list[str]:
        """Names never read, but for those that match one of the `known` patterns (fnmatch)."""
        return sorted(n for n in self.keys() - self.read if not any(fnmatch(n, pattern) for pattern in known))


@dataclass(frozen=True)
class Fixture:
    """PREFIX.json, PREFIX.weights.safetensors (reference names), PREFIX.io.safetensors (inputs and outputs)."""

    name: str
    facts: dict[str, Any]
    weights: dict[str, Tensor]
    io: Recorded

    @classmethod
    def load(cls, prefix: str) -> "Fixture":
        """Floating point weights become float32. Raises FileNotFoundError naming the missing file."""
        files = [Path(f"{prefix}.{end}") for end in ("json", "weights.safetensors", "io.safetensors")]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing; PREFIX is the path without .json")
        weights = {k: v.float() if v.is_floating_point() else v for k, v in load_file(files[1]).items()}
        return cls(files[0].stem, json.loads(files[0].read_text()), weights, Recorded(load_file(files[2])))

    @property
    def stage(self) -> str:
        """ "fine" or "coarse", by the names of the weights."""
        return "fine" if any(name.startswith("fusion_backbone.") for name in self.weights) else "coarse"

    def count(self, pattern_start: str, pattern_end: str) -> int:
        """How many weights have a name with this beginning and end."""
        return sum(k.startswith(pattern_start) and k.endswith(pattern_end) for k in self.weights)


@dataclass(frozen=True)
class Row:
    """One comparison: largest absolute error, the same relative to the largest expected magnitude."""

    output: str
    max_abs: float
    relative: float
    tolerance: str
    ok: bool


@dataclass
class Report:
    """The comparisons of one fixture."""

    rows: list[Row] = field(default_factory=list)

    def close(self, output: str, ours: Any, expected: Any, absolute: float = 0.0, relative: float = 0.0) -> None:
        """Row that is ok when max |ours - expected| is within `absolute` or within `relative` x max |expected|."""
        ours, expected = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (ours, expected))
        limit = f"{absolute:g} abs" if absolute else f"{relative:g} rel"
        if ours.shape != expected.shape:
            self.rows.append(Row(f"{output} {tuple(ours.shape)}!={tuple(expected.shape)}", *_BAD, limit, False))
            return
        error = (ours - expected).abs().max().item() if expected.numel() else 0.0
        scale = expected.abs().max().item() if expected.numel() else 0.0
        ok = error <= max(absolute, relative * scale)  # False for NaN
        self.rows.append(Row(output, error, error / scale if scale else error, limit, ok))

    def equal(self, output: str, ours: Any, expected: Any) -> None:
        """Row that is ok when both are equal (tensors, or anything that compares)."""
        if isinstance(expected, Tensor):
            same = ours.shape == expected.shape and bool((ours == expected).all())
        else:
            same = ours == expected
        self.rows.append(Row(output, *((0.0, 0.0) if same else _BAD), "equal", same))

    def gradients(
        self, norms: dict[str, float], expected: dict[str, float], relative: float, gates: float, what: str = ""
    ) -> None:
        """Two rows for all norms, gates apart (the worst of each), and one for each that fails. Norms below 1e-6 are
        compared as such."""
        for kind, tolerance in (("", relative), (" of gates", gates)):
            selected = {k: v for k, v in expected.items() if ("alpha_" in k) == bool(kind)}
            worst, failed = (0.0, 0.0), 0
            for name, norm in selected.items():
                error = abs(norms[name] - norm)
                share = 0.0 if norm < 1e-6 else error / norm
                worst = max(worst, (share, error))
                if not (share <= tolerance and (norm >= 1e-6 or error < 1e-6)):  # False for NaN
                    failed += 1
                    self.rows.append(Row(f"{what}grad norm {name}", error, share, f"{tolerance:g} rel", False))
            title = f"{what}grad norms{kind} ({len(selected)})"
            self.rows.append(Row(title, worst[1], worst[0], f"{tolerance:g} rel", failed == 0))


_BAD = (float("nan"), float("nan"))


@torch.no_grad()
def walk_backbone(
    backbone: FusionBackbone, images: Tensor, ids: Tensor, mask: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Every step of a fused pass by its own name, through the functions that the backbone itself is made of:
    "patch_embed" and "swin_layerS_blockI" (B,N,C), "text_embeddings" and "text_layerJ" (B,L,T), "stageS" after its
    merge, and "swin_layerS_blockI_attn", the fused blocks' attention output with its cross-attention (B,N,C)."""
    image, text = backbone.image, backbone.text
    x, grid = image.embed(images)
    yield "patch_embed", x
    y = text.embeddings(ids)
    yield "text_embeddings", y
    bias = padding_bias(mask, y.dtype)
    prefix = len(text.layers) - backbone.num_fused
    for j in range(prefix):
        y = text.run_layer(j, y, bias)
        yield f"text_layer{j}", y
    fused = image.places[-backbone.num_fused :]
    for stage, index in image.places:
        name = f"swin_layer{stage}_block{index}"
        if (stage, index) in fused:
            pair = fused.index((stage, index))
            attended = image.block((stage, index)).attend(x, grid)
            yield f"{name}_attn", attended + backbone.fusion.image_to_text[pair](attended, y, bias)
            x, y = backbone.run_pair(pair, x, grid, y, bias)
            yield f"text_layer{prefix + pair}", y
        else:
            x = image.run_block((stage, index), x, grid)
        yield name, x
        if index + 1 == image.depths[stage] and image.stages[stage].merge is not None:
            x, grid = image.stages[stage].merge(x, grid)
            yield f"stage{stage}", x


def join_windows(x: Tensor, window: int, grid: tuple[int, int]) -> Tensor:
    """Windows (B*n,w²,C) of a padded map, unshifted -> tokens (B,H*W,C) of the map of `grid`."""
    padded = tuple(side + -side % window for side in grid)
    return unpartition(x, (window, window), padded)[:, : grid[0], : grid[1]].flatten(1, 2)
