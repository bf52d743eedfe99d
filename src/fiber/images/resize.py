"""Plain resizing of decoded images to uint8 tensors."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fiber.images.codec import decode, decode_pil


def resize_fast(image: np.ndarray, size: int) -> Tensor:
    """uint8 (H, W, 3) -> uint8 (3, size, size): bicubic with antialiasing, aspect not kept, on uint8 tensors.

    Within a grey level or two of `resize_pil` and two to three times as fast.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    if pixels.shape[2:] == (size, size):
        return pixels[0]
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)[0]


def resize_pil(image: Image.Image, size: int) -> Tensor:
    """RGB -> uint8 (3, size, size): Pillow's bicubic, aspect not kept. The transform the published numbers used."""
    return to_tensor(image.resize((size, size), Image.Resampling.BICUBIC))


def to_tensor(image: Image.Image) -> Tensor:
    """RGB -> uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def load_image(data: bytes, size: int, pil_resize: bool = False) -> Tensor:
    """Encoded bytes -> uint8 (3, size, size), plain resize; `pil_resize` goes through Pillow alone."""
    return resize_pil(decode_pil(data), size) if pil_resize else resize_fast(decode(data), size)
