"""The one way from images and prompts to boxes, of evaluation and of a user's own images alike.

An image is padded to its own multiple of 32 and computed together with those of the same size only, because windows,
norms and averages of the model see the padding. So what is detected in an image does not depend on its neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from fiber.backbone.states import TextState
from fiber.data.prompts import Prompt
from fiber.data.samples.images import MULTIPLE, fitted, pad_images, resize
from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import BoxSelection, Detections


@dataclass(frozen=True)
class Query:
    """One image as the network sees it, uint8 RGB (3,h,w); the size (width, height) px in which boxes are wanted;
    the prompts that ask for them, none of them empty."""

    image: Tensor
    size: tuple[int, int]
    prompts: Sequence[Prompt]


def fit(image: np.ndarray, short: int, longest: int) -> Tensor:
    """uint8 RGB (H,W,3) -> (3,h,w) with its short side at `short`, its long side at most `longest` (px)."""
    height, width = image.shape[:2]
    return resize(image, *fitted(width, height, short, longest))


def run_queries(
    model: FiberDetector,
    queries: Sequence[Query],
    selection: BoxSelection,
    *,
    keep: int | None = None,
    pairs: int = 8,
    text: TextState | None = None,
) -> list[Detections]:
    """Detections of each query, best first, on the CPU, fp32, boxes clipped to the image and in its wanted size.

    Labels are `Prompt.classes`. Every prompt gives up to `selection.keep` detections, `keep` cuts their union;
    `pairs` (image, prompt) pairs are computed at a time. `text`: `model.encode_prompts` of the prompts where all
    queries have the same.
    """
    device = next(model.parameters()).device
    detected = [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))] * len(queries)
    with_prompts = sorted((i for i, query in enumerate(queries) if query.prompts), key=lambda i: _padded(queries[i]))
    for _, group in groupby(with_prompts, key=lambda i: _padded(queries[i])):
        rows = list(group)
        images, sizes = pad_images([queries[i].image for i in rows])
        prompts = [queries[i].prompts for i in rows]
        images, sizes = images.to(device), sizes.to(device)
        batch = model.detect(images, sizes, prompts, selection, keep=keep, pairs=pairs, text=text)
        for i, detections in zip(rows, batch, strict=True):
            detected[i] = _in_wanted_pixels(detections, queries[i])
    return detected


def _padded(query: Query) -> tuple[int, int]:
    """(H, W) of an image when it is padded alone."""
    height, width = query.image.shape[1:]
    return -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE


def _in_wanted_pixels(detections: Detections, query: Query) -> Detections:
    height, width = query.image.shape[1:]
    scale = torch.tensor([query.size[0] / width, query.size[1] / height] * 2)
    return replace(detections, boxes=detections.boxes * scale)
