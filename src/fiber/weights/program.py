"""Models as torch.export programs (.pt2) or ONNX files (.onnx), for use without this project's code.

A dual encoder gives the contrastive features of images and texts; a detector gives the head's raw outputs of images,
each with its prompt (selection and suppression depend on the data and stay outside). The number of images and the
length of the texts are free; height and width are those of the file, since windows, their masks and the levels of the
pyramid follow from them. Every program is compared with the model in sizes that it was not traced with.
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
SIDE = 32  # px; sides of a detector's images are multiples of it
SHORTEST = 2  # tokens: of an empty text, <s> and </s>
INPUTS = {"coarse": ["images", "ids", "mask"], "fine": ["images", "sizes", "ids", "mask"]}
"""Names of the inputs of an ONNX file, in order."""
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
        _check_shapes(images, ids, mask)
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
        torch._check(sizes.shape[0] == images.shape[0])
        _check_shapes(images, ids, mask)
        output, anchors = self.model(images, sizes, ids, mask)
        return list(output.tokens), list(output.deltas), list(output.centerness), anchors


def _check_shapes(images: Tensor, ids: Tensor, mask: Tensor) -> None:
    """A row of ids and of mask per image. Tracing takes the sizes for one and the same from here on."""
    torch._check(ids.shape[0] == images.shape[0])
    torch._check(mask.shape[0] == images.shape[0])
    torch._check(mask.shape[1] == ids.shape[1])


def write_program(export: Export, path: str | Path, size: tuple[int, int] | None = None) -> float:
    """Write a torch.export program of an export's model in fp32 on the CPU -> largest absolute difference from the
    model. `size`: (height, width) px, default a square of the export's image size. Raises WeightsError on a size that
    the model cannot take, and where the program computes something else."""
    traced = Traced(export, size)
    with torch.no_grad():
        program = torch.export.export(traced.module, traced.example, dynamic_shapes=traced.axes)
    worst = traced.check(program.module())
    torch.export.save(program, path)
    return worst


def export_onnx(export: Export, path: str | Path, size: tuple[int, int] | None = None) -> float:
    """`write_program` as an ONNX file (opset OPSET), compared in onnxruntime. Its inputs are INPUTS, its outputs
    OUTPUTS, those of a detector with the level behind; free axes are called "batch" and "length". Raises WeightsError
    also where a package of the extra `onnx` is missing."""
    try:
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401 - torch.onnx.export needs it, and says so less clearly
    except ImportError as error:
        raise WeightsError(f"ONNX needs {error.name}: pip install 'fiber-vl[onnx]'") from None
    traced = Traced(export, size)
    inputs = INPUTS[traced.stage]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        levels = len(traced.module(*traced.example)[0]) if traced.stage == "fine" else 0
        outputs = [f"{name}_{level}" for name in OUTPUTS["fine"] for level in range(levels)] or OUTPUTS["coarse"]
        torch.onnx.export(
            traced.module,
            traced.example,
            path,
            dynamo=True,
            dynamic_shapes=traced.axes,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            external_data=False,
            verbose=False,
            optimize=False,  # onnxruntime does it again when it loads the file
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every operation that it does not fold
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> list[Tensor]:
        given = {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, given)]

    try:
        return traced.check(run)
    except WeightsError:
        Path(path).unlink()
        raise


class Traced:
    """What is traced: `module`, an `example` of its inputs, and the free `axes` of each of them."""

    def __init__(self, export: Export, size: tuple[int, int] | None) -> None:
        config = export.config
        self.height, self.width = size or (config.image_size, config.image_size)
        self.stage, self.longest, self.vocabulary = config.stage, config.max_text, config.vocab_size
        if self.stage == "fine" and (self.height % SIDE or self.width % SIDE):
            raise WeightsError(f"size {self.height}x{self.width}: a detector takes multiples of {SIDE} px")
        model, _ = build(export)
        model = model.float().eval()
        self.module = (DualEncoder(model) if isinstance(model, CoarseModel) else DetectorOutputs(model)).eval()
        self.example = self.inputs(2, self.longest, seed=0)
        rows = torch.export.Dim("batch", min=1)
        words = torch.export.Dim("length", min=SHORTEST, max=self.longest)
        self.axes = {"images": {0: rows}, "sizes": {0: rows}, "ids": {0: rows, 1: words}, "mask": {0: rows, 1: words}}
        self.axes = {name: self.axes[name] for name in INPUTS[self.stage]}
        try:
            with torch.no_grad():
                self.module(*self.example)  # fills the caches of masks and indices before tracing
        except ValueError as error:
            raise WeightsError(f"size {self.height}x{self.width}: {error}") from None

    def check(self, program: Callable[..., Any]) -> float:
        """Largest difference of a program from the model for one image and the shortest text, for three and a text of
        half the length, and for two and the longest. Raises WeightsError above TOLERANCE."""
        shapes = (1, SHORTEST), (3, (SHORTEST + self.longest) // 2), (2, self.longest)
        return max(
            largest_difference(self.module, program, self.inputs(rows, words, seed))
            for seed, (rows, words) in enumerate(shapes, start=1)
        )

    def inputs(self, rows: int, words: int, seed: int) -> tuple[Tensor, ...]:
        """Random images and texts; where there is room, the last text ends in padding."""
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (rows, 3, self.height, self.width), dtype=torch.uint8, generator=generator)
        ids = torch.randint(4, self.vocabulary, (rows, words), generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, max(SHORTEST, words - 2) :] = 0
        ids = torch.where(mask == 1, ids, 1)
        sizes = torch.tensor([[self.height - seed, self.width]] * rows)
        return (images, ids, mask) if self.stage == "coarse" else (images, sizes, ids, mask)


@torch.no_grad()
def largest_difference(module: nn.Module, program: Callable[..., Any], inputs: tuple[Tensor, ...]) -> float:
    """Largest absolute difference between the outputs of both. Raises WeightsError above TOLERANCE."""
    pairs = zip(_flat(module(*inputs)), _flat(program(*inputs)), strict=True)
    worst = max(float((a - b).abs().max()) for a, b in pairs)
    if not worst <= TOLERANCE:
        raise WeightsError(f"the program differs from the model by {worst:.1e}, {TOLERANCE:.0e} is allowed")
    return worst


def _flat(outputs: Sequence[Any]) -> list[Tensor]:
    return [x for output in outputs for x in (output if isinstance(output, list | tuple) else [output])]
