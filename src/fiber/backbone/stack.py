"""A list of modules of one kind, for the type checker."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from torch import nn

M = TypeVar("M", bound=nn.Module)


class Stack(nn.ModuleList, Generic[M]):
    """`nn.ModuleList` in everything; what is taken out of it has the type of what was put in."""

    if TYPE_CHECKING:

        def __getitem__(self, index: int) -> M:  # type: ignore[override]
            """The module at a position."""
            return cast(M, super().__getitem__(index))

        def __iter__(self) -> Iterator[M]:
            """The modules in order."""
            return cast(Iterator[M], super().__iter__())
