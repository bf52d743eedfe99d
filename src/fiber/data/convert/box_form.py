"""Whether boxes that should be [x, y, width, height] in pixels are corners, or fractions of their image.

Judged are the first images of a set, by most of their boxes: a few that are odd do not hide the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fiber.data.convert.items import RawImage, UnusableItem
from fiber.errors import SampleFault
from fiber.images.codec import upright_size

JUDGED = 2000  # images, whose sizes the annotations say
_OPENED = 100  # images that are opened because they do not
_FEW = 3  # boxes that are too few to tell
_MOST = 0.8


class BoxForm:
    """Counts over the boxes of some images."""

    def __init__(self) -> None:
        self.images = self._opened = 0
        self._boxes = self._fractions = self._beyond = self._corners = 0

    def add(self, boxes: Sequence[Sequence[float]], size: tuple[int, int] | None, image: RawImage | None) -> None:
        """Those of an image: [x, y, width, height] each. size: (width, height); None: the image's own is taken."""
        self.images += 1
        if size is None and image is not None and self._opened < _OPENED:
            self._opened += 1
            try:
                size = upright_size(image.read())
            except (UnusableItem, SampleFault):
                return
        if size is None:
            return
        for sides in boxes:
            if not all(map(math.isfinite, sides)):
                continue
            x, y, a, b = sides
            self._boxes += 1
            self._fractions += max(sides) <= 1 and min(sides) >= 0 and min(size) > 2
            self._beyond += x + a > size[0] + 1 or y + b > size[1] + 1
            self._corners += x < a <= size[0] + 1 and y < b <= size[1] + 1

    def problem(self) -> str | None:
        """What is wrong with the boxes, and what to do about it; None where nothing is."""
        number = self._boxes
        if number < _FEW:
            return None
        if self._fractions >= _MOST * number:
            return (
                f"{self._fractions} of the first {number} boxes lie within 1 pixel, so they are fractions of the "
                "image: pixels are expected; multiply x and width by the image's width, y and height by its height"
            )
        if self._corners >= _MOST * number and self._beyond * 2 >= number:
            return (
                f"{self._beyond} of the first {number} boxes leave their image as [x, y, width, height], and "
                f"{self._corners} fit as [x0, y0, x1, y1]: these are corners; write [x0, y0, x1 - x0, y1 - y0]"
            )
        return None
