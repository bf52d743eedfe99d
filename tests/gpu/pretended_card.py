"""A pretended CUDA card: tensors that compute on the CPU and say that they are on cuda:0.

Inside `with pretended_card() as card:` the project's code takes the ways that it takes on a card. What CUDA refuses
is refused: a CPU tensor that meets one of the card, a CPU generator, `.numpy()`. What costs time there is counted by
file and line of the project: `waits` (the host stops until the card has caught up), `uploads` (copies to the card),
`launches` (kernels, about one per operation), and `attention`: for every call of scaled_dot_product_attention the
kernel that torch would choose. Nothing says how fast a card is; it says what the code asks of one.

The rules are those of torch 2.14: which operations wait (those whose result has a size, or is a number, that only the
card knows), and `aten/src/ATen/native/transformers/cuda/sdp_utils.cpp` with its checks in `sdp_utils_cpp.h`.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from fiber import distributed

M = TypeVar("M", bound=nn.Module)

CUDA = torch.device("cuda", 0)
SOURCES = str(Path(distributed.__file__).parent)
# Operations after which the host waits: their result is a number, or has as many entries as the data say.
WAITING = {
    *(
        "aten::_local_scalar_dense",
        "aten::item",
        "aten::equal",
        "aten::is_nonzero",
        "aten::nonzero",
        "aten::bincount",
    ),
    *("aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "torchvision::nms"),
}
NUMBERS = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"}
JOINING = {"aten::stack", "aten::cat"}  # not even a number of the CPU
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
VIEWS = {
    *(
        "view",
        "permute",
        "transpose",
        "slice",
        "select",
        "expand",
        "unsqueeze",
        "squeeze",
        "detach",
        "alias",
        "split",
    ),
    *("unbind", "as_strided", "t", "_unsafe_view", "unfold", "chunk", "split_with_sizes", "_reshape_alias"),
    *("lift_fresh", "diagonal", "is_pinned", "sym_size", "sym_stride", "empty", "empty_like"),
}


class CardTensor(Tensor):
    """Says cuda:0; its numbers are in `host`."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> CardTensor:
        about = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        made = Tensor._make_wrapper_subclass(cls, host.size(), **about, layout=host.layout, device=CUDA)
        made.host = host
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"CardTensor({tuple(self.shape)}, {self.dtype})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Card.current.__torch_dispatch__(func, types, args, kwargs)


def place(innermost: bool = True) -> str:
    """File and line of the project that asks for the operation at work; `innermost` leaves out attention.py."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(SOURCES) and (innermost or not frame.filename.endswith("attention.py")):
            return f"{frame.filename[len(SOURCES) + 1 :]}:{frame.lineno} {frame.name}"
    return "outside the project"


def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, cudnn: bool) -> str:
    """What torch would choose on a card that puts cuDNN first where it is enabled (Hopper and later)."""
    half, same = q.dtype in (torch.bfloat16, torch.float16), q.shape[:2] == k.shape[:2] == v.shape[:2]
    strides = all(t.stride(-1) == 1 for t in (q, k, v)) and (mask is None or mask.stride(-1) == 1)
    fits = half and strides and same and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and k.shape[2] != 1
    if cudnn and fits and (mask is None or not mask.requires_grad) and (dropout * 16) % 1 == 0 and len(q) <= 65535:
        return "cudnn"
    if half and mask is None and strides and same:
        return "flash"
    aligned = q.shape[-1] % (8 if half else 4) == 0
    return "efficient" if strides and same and aligned and 0 not in (q.shape[2], k.shape[2]) else "math"


class Card(TorchDispatchMode):
    """The counts of one card; see the head of the file."""

    current: Card

    def __init__(self) -> None:
        super().__init__()
        self.waits, self.uploads, self.attention, self.operations = (Counter[str]() for _ in range(4))

    @property
    def launches(self) -> int:
        """Kernels started, about: operations that are no views."""
        return self.operations.total()

    def reset(self) -> None:
        """Count from 0 again."""
        for counter in (self.waits, self.uploads, self.attention, self.operations):
            counter.clear()

    def __enter__(self) -> Card:  # type: ignore[override]
        Card.current = self
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        card, host = (
            [t for t in tensors if isinstance(t, CardTensor)],
            [t for t in tensors if not isinstance(t, CardTensor)],
        )
        asked = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        if name == "aten::_to_copy":
            return self._copied(func, args[0], asked, kwargs)
        if name == "aten::copy_" and card and host:
            (self.uploads if isinstance(args[0], CardTensor) else self.waits)[place()] += 1
            bare(args[0]).copy_(bare(args[1]))
            return args[0]
        there = (bool(card) and asked in (None, "cuda")) or asked == "cuda"
        if card:
            self._refuse(name, args, host)
            self._count(name, args, kwargs)
        generator = kwargs.get("generator")
        if there and generator is not None and generator.device.type == "cpu":
            raise RuntimeError(f"{name} at {place()}: a CPU generator for a tensor of the card")
        if there and name.split("::")[1] not in VIEWS:
            self.operations[name] += 1
        plain = tree_map(bare, kwargs) | ({"device": torch.device("cpu")} if asked == "cuda" else {})
        out = func(*tree_map(bare, args), **plain)
        if not there or name in NUMBERS:
            return out
        out = tree_map(lambda x: CardTensor(x) if isinstance(x, Tensor) else x, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if card else out

    def _copied(self, func: Any, source: Tensor, asked: str | None, kwargs: dict[str, Any]) -> Tensor:
        """`Tensor.to`: up, down, or of another dtype where it is."""
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking", "pin_memory")}
        out, above = func(bare(source), **kwargs), isinstance(source, CardTensor)
        if above and asked == "cpu":
            self.waits[place()] += 1
            return out
        if not above and asked == "cuda":
            self.uploads[place()] += 1
        self.operations["aten::_to_copy"] += above
        return CardTensor(out) if asked == "cuda" or (above and asked is None) else out

    def _refuse(self, name: str, args: Any, host: list[Tensor]) -> None:
        """Raises RuntimeError where a CPU tensor with more than a number meets the card; an index is sent there."""
        beside = [t for t in host if t.dim() > 0 or name in JOINING]
        if beside and name in INDEXING and isinstance(args[0], CardTensor):
            self.uploads[place()] += len(beside)
        elif beside:
            raise RuntimeError(f"{name} at {place()}: CPU tensors {[tuple(t.shape) for t in beside]} meet the card's")

    def _count(self, name: str, args: Any, kwargs: Any) -> None:
        waits = name in WAITING or (name == "aten::repeat_interleave" and kwargs.get("output_size") is None)
        if name in INDEXING:  # by a mask: how many entries it has, only the card knows
            masks = [t for t in tree_flatten(args[1])[0] if isinstance(t, Tensor) and t.dtype == torch.bool]
            waits = bool(masks) and not (name != "aten::index" and len(args) > 2 and args[2].dim() == 0)
        if waits:
            self.waits[place()] += 1


def bare(x: Any) -> Any:
    """The CPU tensor inside one of the card; everything else as it is."""
    return x.host if isinstance(x, CardTensor) else x


def on_card(values: Any) -> Any:
    """A tree of values with its tensors on the card."""
    return tree_map(lambda x: CardTensor(x) if isinstance(x, Tensor) and not isinstance(x, CardTensor) else x, values)


def to_card(module: M) -> M:
    """A module with its parameters and buffers on the card, in place."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(CardTensor(p.data), requires_grad=p.requires_grad)
        for name, b in part._buffers.items():
            part._buffers[name] = None if b is None else CardTensor(b)
    return module


@contextmanager
def pretended_card() -> Iterator[Card]:
    """The card, as the device of this rank. Parts of torch that never reach the dispatcher are replaced in it."""
    torch._C._ensureCUDADeviceGuardSet()
    card = Card()
    with ExitStack() as stack:

        def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
            stack.enter_context(patch.object(owner, name, make(getattr(owner, name))))

        replace(distributed, "device", lambda _: lambda: CUDA)
        replace(torch.cuda, "_lazy_init", lambda _: lambda: None)
        replace(torch, "tensor", _tensor)
        replace(Tensor, "new_tensor", lambda _: _new_tensor)
        replace(Tensor, "__getitem__", lambda get: lambda self, i: get(self, _index(card, self, i)))
        replace(Tensor, "__setitem__", lambda put: lambda self, i, value: put(self, _index(card, self, i), value))
        replace(Tensor, "tolist", lambda plain: lambda self: _to_list(card, self, plain))
        replace(Tensor, "numpy", lambda plain: lambda self, *a, **k: _to_numpy(self, plain, *a, **k))
        replace(F, "scaled_dot_product_attention", lambda plain: _watched_attention(card, plain))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))  # the engine has no thread for it
        yield stack.enter_context(card)


_PLAIN_TENSOR = torch.tensor


def _tensor(plain: Any) -> Any:
    def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        made = plain(data, **options)
        return made if device is None else made.to(device)

    return tensor


def _new_tensor(self: Tensor, data: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
    return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device, **options)


def _index(card: Card, self: Tensor, index: Any) -> Any:
    """A list as an index is made on the CPU, and sent to the card."""
    if not isinstance(self, CardTensor):
        return index

    def sent(i: Any) -> Any:
        if isinstance(i, list) and i:
            card.uploads[place()] += 1
            return CardTensor(_PLAIN_TENSOR(i))
        return i

    return tuple(map(sent, index)) if isinstance(index, tuple) else sent(index)


def _to_list(card: Card, self: Tensor, plain: Any) -> Any:
    if isinstance(self, CardTensor):
        card.waits[place()] += 1
    return plain(bare(self))


def _to_numpy(self: Tensor, plain: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(self, CardTensor):
        raise TypeError(f"numpy at {place()}: a tensor of the card")
    return plain(self, *args, **kwargs)


def _watched_attention(card: Card, plain: Any) -> Any:
    def attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **more: Any
    ) -> Tensor:
        if isinstance(q, CardTensor):
            chosen = kernel(q, k, v, attn_mask, dropout_p, torch.backends.cuda.cudnn_sdp_enabled())
            card.attention[f"{chosen} {place(innermost=False)}"] += 1
        before = card.operations.copy()
        out = plain(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, **more)
        if isinstance(q, CardTensor) and chosen != "math":  # one kernel
            card.operations = before + Counter({"fused attention": 1})
        return out

    return attention
