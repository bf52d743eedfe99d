"""Images of any sizes: read as their records say, resized with their aspect, padded to a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.data.records import Sample
from fiber.data.workers import empty
from fiber.errors import SampleFault
from fiber.images.codec import decode

MULTIPLE = 32  # padded sides are multiples of the coarsest backbone stride


def fitted(width: int, height: int, short: int, longest: int) -> tuple[int, int]:
    """(w, h) with the aspect kept: the short side `short`, or less where the long side would pass `longest`."""
    scale = min(short / min(width, height), longest / max(width, height))
    return max(round(width * scale), 1), max(round(height * scale), 1)


def read_image(sample: Sample) -> np.ndarray:
    """The image as uint8 RGB (H, W, 3). SampleFault("size_mismatch") where it has not the size that its record, and
    so its boxes, speak of."""
    image = decode(sample.images[0][1])
    expected = (sample.record["height"], sample.record["width"])
    if image.shape[:2] != expected:
        raise SampleFault("size_mismatch", f"the image is {image.shape[:2]} (h, w), its record says {expected}")
    return image


def resize(image: np.ndarray, width: int, height: int) -> Tensor:
    """uint8 (H, W, 3) -> uint8 (3, height, width), bilinear with antialiasing."""
    pixels = torch.from_numpy(image if image.flags.writeable else image.copy()).permute(2, 0, 1)[None]
    if pixels.shape[2:] != (height, width):
        pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return pixels[0]


def pad_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """uint8 images (3,h,w) -> (B,3,H,W), zero at the bottom and right, and their sizes (B,2) int64 (h, w). H and W
    are the least multiples of 32 that hold them all."""
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = (-(-sizes // MULTIPLE) * MULTIPLE).amax(0).tolist()
    padded = empty((len(images), 3, height, width), torch.uint8).zero_()
    for place, image in zip(padded, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return padded, sizes
