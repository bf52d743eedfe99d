"""Which of millions of names have come before, in little memory."""

from __future__ import annotations

import numpy as np

_RECENT = 1 << 15  # hashes in a set; the older ones lie sorted, in 8 bytes each


class Seen:
    """Texts that were met, by their hashes."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._older = np.zeros(0, np.int64)

    def again(self, text: str) -> bool:
        """Whether it was met before; it is from now on."""
        mark = hash(text)
        row = int(np.searchsorted(self._older, mark)) if len(self._older) else 0
        if mark in self._recent or (row < len(self._older) and int(self._older[row]) == mark):
            return True
        self._recent.add(mark)
        if len(self._recent) == _RECENT:
            recent = np.sort(np.fromiter(self._recent, np.int64))
            self._older = np.sort(np.concatenate([self._older, recent]), kind="stable")  # merges the two
            self._recent = set()
        return False
