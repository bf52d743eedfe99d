"""What a processor (CPU) does slowly unless it is asked in the right way."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALLEST = 2**17  # weights of a layer from which on a copy pays
ROWS = 5  # that the copy is laid out for; others, more and fewer, gain as well
BLOCK = 64  # numbers that `largest` compares as one at first
LOGITS = 2**16  # of a part of `focal_loss`: what is computed of them stays in the cache


def bfloat16_is_faster(description: str | Path = "/proc/cpuinfo") -> bool:
    """Whether the processor multiplies bfloat16 faster than fp32: with AMX, or with AMD's avx512_bf16. Intel's alone
    is slower (an Emerald Rapids whose AMX was hidden: 82 GFLOP/s against 147), others imitate bfloat16, slower still.
    False where the system does not say (Linux does)."""
    try:
        said = Path(description).read_text()
    except OSError:
        return False
    return bool(re.search(r"\bamx_bf16\b", said) or re.search(r"AuthenticAMD[\s\S]*\bavx512_bf16\b", said))


def pack(modules: Iterable[nn.Module]) -> list[nn.Linear]:
    """From now on the larger linear layers of `modules` multiply, where no gradient is asked for, by a copy of their
    weights in the order in which oneDNN reads them: a third to 0.8 of the time for up to a hundred rows. For fp32 on
    a CPU; other layers stay as they are. The copies take the memory of the weights again, do not follow changes,
    and cost as much as ten products. -> the layers that were not packed before."""
    if not torch.backends.mkldnn.is_available():
        return []
    packed = []
    for layer in (part for module in modules for part in module.modules()):
        if type(layer) is nn.Linear and "forward" not in vars(layer) and _gains(layer.weight):
            copied = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
            layer.forward = partial(_product, layer, copied)  # type: ignore[method-assign]
            packed.append(layer)
    return packed


@contextmanager
def packed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """`pack`, undone in the end."""
    layers = pack(modules)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the instance's: that of the class is there again


def _gains(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= SMALLEST


def _product(layer: nn.Linear, copied: Tensor, x: Tensor) -> Tensor:
    """As the layer, x (...,C) -> (...,H)."""
    if torch.is_grad_enabled():
        return F.linear(x, layer.weight, layer.bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, copied, layer.bias, "none", [], "")
    return product


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row of scores (B,N), best first, and their places, both (B,count). They lie in the
    blocks with the `count` largest maxima; `topk` of whole rows takes up to ten times as long on a CPU."""
    whole = scores.shape[1] // BLOCK * BLOCK
    if whole < 4 * count * BLOCK:
        best, place = scores.topk(count, dim=-1)
        return best, place
    blocks = scores[:, :whole].unflatten(1, (-1, BLOCK))
    block = blocks.amax(-1).topk(count, dim=-1).indices[..., None].expand(-1, -1, BLOCK)
    rest = torch.arange(whole, scores.shape[1], device=scores.device).expand(len(scores), -1)
    places = torch.cat([(block * BLOCK + torch.arange(BLOCK, device=scores.device)).flatten(1), rest], dim=1)
    best, place = torch.cat([blocks.gather(1, block).flatten(1), scores[:, whole:]], dim=1).topk(count, dim=-1)
    return best, places.gather(1, place)


def weighted_rows(rows: Tensor, index: Tensor, shares: Tensor) -> Tensor:
    """rows (N,C), index (P,K) int32, shares (P,K) -> (P,C), the sum over k of rows[index] x shares."""
    if torch.compiler.is_compiling():  # ONNX has no embedding_bag that onnxruntime loads
        return (F.embedding(index, rows) * shares[..., None]).sum(1)
    sums = F.embedding_bag(index, rows.detach(), mode="sum", per_sample_weights=shares)
    return _IntoRows.apply(sums, rows, index, shares.detach()) if rows.requires_grad else sums


class _IntoRows(torch.autograd.Function):
    """The sums as they are, with their gradient for the rows: each row sums what it was used for, as the forward pass
    does it. embedding_bag's own backward adds one row after the other, in three times the time."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, rows: Tensor, index: Tensor, shares: Tensor) -> Tensor:
        ctx.save_for_backward(index, shares)
        ctx.rows = len(rows)
        return sums.view_as(sums)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        index, shares = ctx.saved_tensors
        used, place = index.flatten().sort()
        starts = torch.searchsorted(used, torch.arange(ctx.rows, dtype=used.dtype, device=used.device))
        into = F.embedding_bag(
            place // index.shape[1], grad, starts, mode="sum", per_sample_weights=shares.flatten()[place]
        )
        return grad, into, None, None


def focal_loss(logits: Tensor, target: Tensor, mask: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss (Lin et al., ICCV 2017) of logits and binary targets (B,A,L), summed over the
    tokens that mask (B,L) attends to -> (). Loss and slope are computed together, on a CPU part by part: 0.3 of
    the time that tensor expressions need, which go over all logits some forty times, and one buffer for the gradient
    in place of six. It has no second derivative."""
    loss: Tensor = _Focal.apply(logits, target, mask[:, None].to(logits.dtype), alpha, gamma)
    return loss


class _Focal(torch.autograd.Function):
    """With z the logit, its sign turned where the target is 1, and p = sigmoid(z), an entry is
    weight * p^gamma * softplus(z), and its slope by z is weight * p^gamma * (gamma * (1 - p) * softplus(z) + p)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, mask: Tensor, alpha: float, gamma: float) -> Tensor:
        slopes, total = torch.empty_like(logits), logits.new_zeros(())
        images, size, length = logits.shape
        if not logits.is_cuda:
            size = max(1, LOGITS // max(1, images * length))
        for x, wanted, slope in zip(*(tensor.split(size, 1) for tensor in (logits, target, slopes)), strict=True):
            sign = 1 - 2 * wanted
            z = x * sign
            miss, cross_entropy = z.sigmoid(), F.softplus(z)
            weight = (1 - alpha + (2 * alpha - 1) * wanted).mul_(mask).mul_(miss**gamma)
            total += (weight * cross_entropy).sum()
            torch.addcmul(cross_entropy, cross_entropy, miss, value=-1, out=slope)
            slope.mul_(gamma).add_(miss).mul_(weight).mul_(sign)
        ctx.save_for_backward(slopes)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return grad * ctx.saved_tensors[0], None, None, None, None


def nms(boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """torchvision's non-maximum suppression, boxes (N,4), scores (N,), on any device -> int64 rows that stay, best
    first. Its library is loaded alone: `torchvision.ops` brings torch's compiler along, seconds of a processor."""
    _load_torchvision()
    return torch.ops.torchvision.nms(boxes, scores, overlap)


@cache
def _load_torchvision() -> None:
    """Raises ModuleNotFoundError where torchvision is missing."""
    package = find_spec("torchvision")
    if package is None:
        raise ModuleNotFoundError("torchvision is not installed", name="torchvision")
    for library in Path(str(package.origin)).parent.glob("_C*"):
        torch.ops.load_library(library)
    if not hasattr(torch.ops.torchvision, "nms"):  # another version keeps it elsewhere
        import torchvision.ops  # noqa: F401
