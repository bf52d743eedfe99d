"""Interpolate between two exports of one model, weight by weight: (1 - ALPHA) A + ALPHA B.

    python tools/interpolate_weights.py A B OUT [--alpha 0.5]

Between a model before fine-tuning (A) and after it (B), some ALPHA often keeps most of what B has gained on the new
data and most of what A could do without it (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022):
evaluate a few. A and B are export folders, run directories or hub ids; OUT becomes an export like B. Exit status: 0
done, 1 a clear error, 2 wrong usage.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from fiber.cli.numbers import real_number
from fiber.config.loading import to_dict
from fiber.errors import WeightsError
from fiber.weights.card import Card
from fiber.weights.export import Export, read_export, write_export

FREE = {
    "model.image.drop_path",
    "model.text.dropout",
    "model.init",
    "model.checkpointing",
    "detector.drop_block",
    "detector.log_scale",
    "image_size",
    "max_image_size",
}
"""Keys in which two exports may differ: they concern training, or the images that the model is given."""
TOLD = ("architectures", "auto_map", "thresholds", "trained")
"""Sections that tell users and transformers of an export, not what the model is."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument(
        "--alpha", type=real_number(0, 1), default=0.5, help="share of B, 0 to 1 (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    try:
        a, b = read_export(arguments.a), read_export(arguments.b)
        check_alike(a, b)
        share = arguments.alpha
        tensors = {name: torch.lerp(a.tensors[name].float(), x.float(), share) for name, x in b.tensors.items()}
        tensors = {name: tensor.to(b.tensors[name].dtype) for name, tensor in tensors.items()}
        # No local paths in a file that travels.
        note = f"interpolated: {1 - share:g} x {title(arguments.a)} + {share:g} x {title(arguments.b)}"
        lists = {"answers": b.answers, "categories": b.categories}
        write_export(arguments.out, tensors, b.config, b.tokenizer, card=Card(notes=[note]), **lists)
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.out}: {note}")
    return 0


def check_alike(a: Export, b: Export) -> None:
    """Raises WeightsError naming what keeps two exports from being states of one model."""
    first, second = flat(to_dict(a.config)), flat(to_dict(b.config))
    for key in sorted(first.keys() | second.keys()):
        free = key in FREE or key.split(".")[0] in TOLD
        if not free and first.get(key) != second.get(key):
            raise WeightsError(f"not one model: {key} is {first.get(key)} in A and {second.get(key)} in B")
    if a.tokenizer.get_vocab() != b.tokenizer.get_vocab():
        raise WeightsError("not one model: A and B have the same number of tokens, but not the same tokens")
    if a.answers != b.answers:
        raise WeightsError("not one model: the answers of A and B differ")
    for name in sorted(a.tensors.keys() | b.tensors.keys()):
        shapes = [tuple(x.tensors[name].shape) if name in x.tensors else None for x in (a, b)]
        if shapes[0] != shapes[1]:
            raise WeightsError(f"not one model: {name} has the shape {shapes[0]} in A and {shapes[1]} in B")


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested dicts by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def title(path: str) -> str:
    """What a model card calls an export: the name of its run or folder."""
    parts = Path(path).parts
    return parts[-2] if len(parts) > 1 and parts[-1] == "export" else parts[-1]


if __name__ == "__main__":
    sys.exit(main())
