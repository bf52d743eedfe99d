"""States: what a tower has computed before fusion. Plain tensors with the batch first, so that a state can be
indexed (hard negatives, candidates of a re-ranking), concatenated (the pairs of matching) and moved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from fiber.backbone.windows import Grid


@dataclass(frozen=True)
class State:
    """Base of both states: maps a function over every batched tensor of the state."""

    tokens: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A new state with `function` applied to every batched tensor."""
        raise NotImplementedError

    def layout(self) -> tuple[Grid, ...]:
        """What must agree between states for their rows to stand in one batch, beyond the shapes of tensors."""
        return ()

    def tensors(self) -> list[Tensor]:
        """The batched tensors, in the order in which `map` visits them."""
        tensors: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            tensors.append(x)
            return x

        self.map(keep)
        return tensors

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Tensor | slice | list[int]) -> Self:
        return self.map(lambda x: x[index])

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As `Tensor.to` for the floating point tensors; integer tensors only change device."""
        device = next((a for a in args if not isinstance(a, torch.dtype)), kwargs.get("device"))
        return self.map(lambda x: x.to(*args, **kwargs) if x.is_floating_point() else x.to(device or x.device))

    def repeat_interleave(self, times: int) -> Self:
        """Each element `times` times in a row."""
        return self.map(lambda x: x.repeat_interleave(times, dim=0))

    @classmethod
    def cat(cls, states: Sequence[Self]) -> Self:
        """Concatenate along the batch. Raises ValueError unless grids and numbers of stage maps agree."""
        layouts = {state.layout() for state in states}
        if len(layouts) > 1:
            raise ValueError(f"cannot concatenate states of different grids: {sorted(layouts)}")
        columns = [iter(column) for column in zip(*(state.tensors() for state in states), strict=True)]
        parts = iter([torch.cat(list(column)) for column in columns])
        return states[0].map(lambda _: next(parts))


@dataclass(frozen=True)
class ImageState(State):
    """Image tower up to the first fused block: tokens (B,H*W,C), their grid (H,W), and the un-normed maps
    (B,H_s*W_s,C_s) with grids of the stages already finished (empty unless the tower norms its stages)."""

    grid: Grid
    stages: tuple[Tensor, ...] = ()
    stage_grids: tuple[Grid, ...] = ()

    def layout(self) -> tuple[Grid, ...]:
        """The grids of the tokens and of the stages."""
        return (self.grid, *self.stage_grids)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """See `State.map`."""
        stages = (function(self.tokens), *map(function, self.stages))
        return type(self)(stages[0], self.grid, stages[1:], self.stage_grids)


@dataclass(frozen=True)
class TextState(State):
    """Text tower up to the first fused layer: tokens (B,L,T) and mask (B,L) int64, 1 = token."""

    mask: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """See `State.map`."""
        return type(self)(function(self.tokens), function(self.mask))
