"""Models as torch.export programs at fixed sizes, for use without this project's code.

A dual encoder gives the contrastive features of images and texts; a detector gives the head's raw outputs of one
image and one prompt (selection and suppression depend on the data and stay outside). Every program is compared with
the model on inputs that it was not traced with.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from fiber.coarse.model import CoarseModel
from fiber.errors import WeightsError
from fiber.weights.export import Export
from fiber.weights.from_export import build

TOLERANCE = 1e-4  # absolute, on outputs of a few units


class DualEncoder(nn.Module):
    """Contrastive features of images and texts."""

    def __init__(self, model: CoarseModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """images (B,3,S,S) uint8 RGB, ids and mask (B,L) int64 -> unit features (B,H) of images and of texts."""
        image = self.model.image_embedding(self.model.image_prefix(images))
        return image, self.model.text_embedding(self.model.text_prefix(ids, mask))


class DetectorOutputs(nn.Module):
    """Raw outputs of the detection head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, sizes: Tensor, ids: Tensor, mask: Tensor
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """images (B,3,H,W) uint8 RGB, sizes (B,2) un-padded (h, w), ids and mask (B,L) int64 -> per level token
        logits (B,A,L), box deltas (B,A,4), centerness logits (B,A), anchors (A,4)."""
        output, anchors = self.model(images, sizes, ids, mask)
        return list(output.tokens), list(output.deltas), list(output.centerness), anchors


def write_program(
    export: Export, path: str | Path, size: tuple[int, int] | None = None, length: int | None = None
) -> float:
    """Write a torch.export program of an export's model in fp32 on the CPU -> largest absolute difference from the
    model.

    size: (height, width) px, default a square of the export's image size (a multiple of 32 for a detector); length:
    tokens of the text, default the export's limit. Raises WeightsError where the program does not compute what the
    model does.
    """
    config = export.config
    model, _ = build(export)
    model = model.float().eval()
    module: nn.Module = DualEncoder(model) if isinstance(model, CoarseModel) else DetectorOutputs(model)
    height, width = size or (config.image_size, config.image_size)
    length = length or config.max_text
    coarse = config.stage == "coarse"
    traced, unseen = (_inputs(coarse, height, width, length, config.vocab_size, seed) for seed in (0, 1))
    with torch.no_grad():
        module(*traced)  # fills the caches of window masks and indices with real tensors before tracing
        program = torch.export.export(module, traced)
    worst = largest_difference(module, program.module(), unseen)
    torch.export.save(program, path)
    return worst


@torch.no_grad()
def largest_difference(module: nn.Module, program: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Largest absolute difference between the outputs of both. Raises WeightsError above TOLERANCE."""
    pairs = zip(_flat(module(*inputs)), _flat(program(*inputs)), strict=True)
    worst = max(float((a - b).abs().max()) for a, b in pairs)
    if not worst <= TOLERANCE:
        raise WeightsError(f"the program differs from the model by {worst:.1e}, {TOLERANCE:.0e} is allowed")
    return worst


def _inputs(coarse: bool, height: int, width: int, length: int, vocabulary: int, seed: int) -> tuple[Tensor, ...]:
    """Random inputs of one image and one text with some padding."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)
    ids = torch.randint(4, vocabulary, (1, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[:, length - 1 - seed :] = 0
    ids = torch.where(mask == 1, ids, 1)
    sizes = torch.tensor([[height - seed, width]])
    return (images, ids, mask) if coarse else (images, sizes, ids, mask)


def _flat(outputs: tuple) -> list[Tensor]:
    return [x for output in outputs for x in (output if isinstance(output, list | tuple) else [output])]
