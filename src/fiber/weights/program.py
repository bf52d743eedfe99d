"""Models as torch.export programs (.pt2) or ONNX files (.onnx) at fixed sizes, for use without this project's code.

A dual encoder gives the contrastive features of images and texts; a detector gives the head's raw outputs of one
image and one prompt (selection and suppression depend on the data and stay outside). Every program is compared with
the model on inputs that it was not traced with.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fiber.coarse.model import CoarseModel
from fiber.errors import WeightsError
from fiber.weights.export import Export
from fiber.weights.from_export import build

TOLERANCE = 1e-4  # absolute, on outputs of a few units
OPSET = 20  # of ONNX; onnxruntime 1.17 and later know it
OUTPUTS = {
    "coarse": ["image_features", "text_features"],
    "fine": ["token_logits", "box_deltas", "centerness_logits", "anchors"],
}
"""Names of the outputs of an ONNX file, in order."""


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
    model. Sizes and errors as for `_traced`."""
    module, seen, unseen = _traced(export, size, length)
    with torch.no_grad():
        program = torch.export.export(module, seen)
    worst = largest_difference(module, program.module(), unseen)
    torch.export.save(program, path)
    return worst


def export_onnx(
    export: Export, path: str | Path, size: tuple[int, int] | None = None, length: int | None = None
) -> float:
    """Write an ONNX file (opset OPSET, no dynamic axes) of an export's model in fp32 -> largest absolute difference
    from the model in onnxruntime. Inputs are called as the arguments of `DualEncoder.forward` and
    `DetectorOutputs.forward`, outputs as OUTPUTS, those of a detector with the level behind. Sizes and errors as for
    `_traced`; raises WeightsError also where a package of the extra `onnx` is missing."""
    try:
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401 - torch.onnx.export needs it, and says so less clearly
    except ImportError as error:
        raise WeightsError(f"ONNX needs {error.name}: pip install 'fiber-vl[onnx]'") from None
    module, seen, unseen = _traced(export, size, length)
    detector = isinstance(module, DetectorOutputs)
    inputs = ["images", "sizes", "ids", "mask"] if detector else ["images", "ids", "mask"]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        levels = len(module(*seen)[0]) if detector else 0
        outputs = [f"{name}_{level}" for name in OUTPUTS["fine"] for level in range(levels)] or OUTPUTS["coarse"]
        torch.onnx.export(
            module,
            seen,
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            external_data=False,
            verbose=False,
            optimize=False,  # onnxruntime does it again when it loads the file
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> list[Tensor]:
        given = {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, given)]

    try:
        return largest_difference(module, run, unseen)
    except WeightsError:
        Path(path).unlink()
        raise


def _traced(
    export: Export, size: tuple[int, int] | None, length: int | None
) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The module to write, inputs to trace it with, and others to compare with.

    size: (height, width) px, default a square of the export's image size (a multiple of 32 for a detector); length:
    tokens of the text, default the export's limit. Raises WeightsError where what is written does not compute what
    the model does.
    """
    config = export.config
    model, _ = build(export)
    model = model.float().eval()
    module: nn.Module = DualEncoder(model) if isinstance(model, CoarseModel) else DetectorOutputs(model)
    coarse = isinstance(module, DualEncoder)
    module.eval()
    height, width = size or (config.image_size, config.image_size)
    length = length or config.max_text
    seen, unseen = (_inputs(coarse, height, width, length, config.vocab_size, seed) for seed in (0, 1))
    with torch.no_grad():
        module(*seen)  # fills the caches of window masks and indices with real tensors before tracing
    return module, seen, unseen


@torch.no_grad()
def largest_difference(module: nn.Module, program: Callable[..., Any], inputs: tuple[Tensor, ...]) -> float:
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


def _flat(outputs: Sequence[Any]) -> list[Tensor]:
    return [x for output in outputs for x in (output if isinstance(output, list | tuple) else [output])]
