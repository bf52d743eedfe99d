"""The one loader of weights into a model, with a report of what became of every tensor.

Sizes that may differ between a file and a model are resized: window bias tables (image resolution), the position
table (text length), rows of the vocabulary (another tokenizer). Any other difference is an error, and so is a
parameter that stays at its initial value unless the caller expected it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.errors import WeightsError

CAPTION_MAPS = "backbone.fusion.caption_maps.*"
"""What captioning alone reads. The release's files have it only after captioning."""

UNREAD_IN_FINE = (CAPTION_MAPS, "prompt")
"""What a detector may lack of another's: `allow_new` from stage 2 to stage 2."""

NEW_IN_FINE = ("backbone.image.stage_norms.*", "fpn.*", "head.*", *UNREAD_IN_FINE)
"""What a detector has that a model at image level does not: `allow_new` of the transfer from stage 1 to stage 2."""

NEW_IN_COARSE = ("backbone.image.norm.*", CAPTION_MAPS, "heads.*")
"""What a model at image level has that a detector does not: `allow_new` of the transfer from stage 2 to stage 1."""

ADAPTERS = ("*.lora_down", "*.lora_up")
"""What adapted layers have besides their weights (backbone/lora.py); no file brings it."""

BIAS_TABLE = ".relative_position_bias"
POSITIONS = "text.embeddings.position.weight"
VOCABULARY = ("text.embeddings.word.weight", "heads.mlm.decoder.weight", "heads.mlm.decoder.bias")


@dataclass
class LoadReport:
    """What `load_weights` did, by tensor name: `loaded` as they are; `resized` with a note from -> to; `new`, kept at
    the model's initial values; `unused`, in the file but not in the model. `untouched` is the share (0..1) of the
    model's numbers that are new without having been expected."""

    loaded: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    untouched: float = 0.0

    def table(self, limit: int = 12, every: bool = False) -> str:
        """The report as text: each category with its count and, below it, up to `limit` modules or notes; with
        `every` all of them, those loaded as they are included."""
        notes = [f"{name}: {note}" for name, note in self.resized.items()]
        lines = []
        for title, names, show in (
            ("loaded", self.loaded, every),
            ("resized", notes, True),
            ("new", self.new, True),
            ("unused", self.unused, True),
        ):
            lines.append(f"{title:8} {len(names):5} tensors")
            shown = _shorten(names) if show else []
            cut = len(shown) if every else limit
            lines += [f"{'':15}{name}" for name in shown[:cut]]
            if len(shown) > cut:
                lines.append(f"{'':15}... and {len(shown) - cut} more lines")
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    allow_new: Sequence[str] = (),
    vocabulary: tuple[Mapping[str, int], Mapping[str, int]] | None = None,
    max_untouched: float = 0.0,
) -> LoadReport:
    """Copy `tensors` (names of ours) into `model`, resizing where sizes may differ.

    allow_new: patterns (`head.*`) of tensors that may stay at their initial values, missing or of another shape;
    low-rank adapters always may.
    vocabulary: (token -> id of the file, token -> id of the model); rows follow their tokens, rows of tokens that the
    file does not know stay new. Without it both must have the same number of ids.
    max_untouched: share (0..1) of the model's numbers that may stay new although no pattern allows them.

    Raises WeightsError, before anything is copied, naming tensors and shapes.
    """
    report, copies, mismatched, untouched = LoadReport(), {}, [], 0
    wanted = model.state_dict()
    report.unused = sorted(set(tensors) - set(wanted))
    for name, target in wanted.items():
        expected = any(fnmatchcase(name, pattern) for pattern in (*allow_new, *ADAPTERS))
        source = tensors.get(name)
        fitted, note = (None, "") if source is None else _fit(name, source, target, vocabulary)
        if fitted is not None:
            copies[name] = fitted
            if note:
                report.resized[name] = note
            else:
                report.loaded.append(name)
            continue
        report.new.append(name)
        if not expected:
            untouched += target.numel()
            if source is not None:
                mismatched.append(f"{name}: file {tuple(source.shape)}, model {tuple(target.shape)}{note}")
    report.untouched = untouched / max(sum(target.numel() for target in wanted.values()), 1)
    if mismatched:
        raise WeightsError("shapes do not fit:\n  " + "\n  ".join(mismatched[:12]))
    if report.untouched > max_untouched:
        raise WeightsError(
            f"{report.untouched:.1%} of the model's weights would stay at their initial values, "
            f"{max_untouched:.1%} are allowed (tensors expected to be new: {', '.join(allow_new) or 'none'})\n"
            + report.table()
        )
    model.load_state_dict(copies, strict=False)
    return report


def resize_bias_table(table: Tensor, side: int) -> Tensor:
    """Relative-position table ((2w-1)², h) of window w -> ((2 side - 1)², h): bicubic over the offsets of each head
    (align_corners False, no antialiasing), as the release does when the resolution changes."""
    old, new = round(len(table) ** 0.5), 2 * side - 1
    if old * old != len(table):
        raise WeightsError(f"a relative-position table of {len(table)} rows is not square")
    maps = table.float().T.unflatten(1, (old, old))[None]
    return F.interpolate(maps, (new, new), mode="bicubic", align_corners=False)[0].flatten(1).T.to(table.dtype)


def _fit(
    name: str, source: Tensor, target: Tensor, vocabulary: tuple[Mapping[str, int], Mapping[str, int]] | None
) -> tuple[Tensor | None, str]:
    """The source in the target's shape and a note if it was resized; None where no rule makes it fit, with a hint."""
    rows = f"{len(source)} -> {len(target)} rows" if source.ndim and target.ndim else ""
    if name.endswith(VOCABULARY):
        if vocabulary is None:
            hint = "; another vocabulary: pass the tokens of both tokenizers"
            return (source, "") if source.shape == target.shape else (None, hint)
        if source.shape[1:] == target.shape[1:]:
            moved, known = _move_rows(source, target, *vocabulary)
            return moved, f"{rows}, {known} by their tokens"
    if source.shape == target.shape:
        return source, ""
    if source.shape[1:] != target.shape[1:] or source.ndim != target.ndim:
        return None, ""
    if name.endswith(BIAS_TABLE):
        return resize_bias_table(source, (round(len(target) ** 0.5) + 1) // 2), f"{rows}, bicubic"
    if name.endswith(POSITIONS):
        kept = min(len(source), len(target))
        return torch.cat([source[:kept].to(target), target[kept:]]), f"{rows}, the first {kept} kept"
    return None, ""


def _move_rows(source: Tensor, target: Tensor, old: Mapping[str, int], new: Mapping[str, int]) -> tuple[Tensor, int]:
    """Rows of the tokens that both vocabularies have, at their new ids; the other rows as they were."""
    shared = [(old[token], row) for token, row in new.items() if old.get(token, len(source)) < len(source)]
    moved = target.clone()
    if shared:
        old_rows, new_rows = torch.tensor(shared, device=source.device).unbind(1)
        moved[new_rows.to(target.device)] = source[old_rows].to(target)
    return moved, len(shared)


def _shorten(names: Sequence[str]) -> list[str]:
    """Names of one numbered part (block, layer, pair) or module on one line, with the number of tensors."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")[:-1]
        numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
        module = name if ": " in name else ".".join(parts[: numbers[-1] + 1] if numbers else parts)
        groups.setdefault(module, []).append(name)
    return [group[0] if len(group) == 1 else f"{module}.* ({len(group)})" for module, group in groups.items()]
