"""The random augmentation of downstream tasks. Every random choice comes from the generator passed in."""

from __future__ import annotations

import math
import re

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from fiber.images.resize import to_tensor

GREY = (128, 128, 128)


SIDES = re.compile(r"\b(left|right)(s|ward|wards|most|hand|-hand|er|y|ies)?\b", re.IGNORECASE)


def mentions_sides(text: str) -> bool:
    """Whether a text speaks of left or right, so that mirroring its image would make it false."""
    return SIDES.search(text) is not None


def augment(image: Image.Image, size: int, rng: np.random.Generator, flip: bool = True) -> Tensor:
    """RGB -> uint8 (3, size, size) as in fine-tuning: random resized crop (0.5 to 1 of the area, bicubic), mirroring
    with probability 1/2 if `flip`, then `rand_augment`."""
    image = image.crop(random_crop(image.width, image.height, rng)).resize((size, size), Image.Resampling.BICUBIC)
    mirror = rng.random() < 0.5
    if flip and mirror:
        image = ImageOps.mirror(image)
    return to_tensor(rand_augment(image, rng))


def random_crop(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Inception's crop: (x0, y0, x1, y1) whose share of the area is uniform in `scale` and whose aspect is
    log-uniform in `ratio`; after ten misses the largest central crop within `ratio`."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return x, y, x + w, y + h
    w, h = min(width, max(1, round(height * ratio[1]))), min(height, max(1, round(width / ratio[0])))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def _affine(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    resample = Image.Resampling.BILINEAR
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, resample, fillcolor=GREY)


def rand_augment(
    image: Image.Image, rng: np.random.Generator, operations: int = 2, magnitude: float = 7
) -> Image.Image:
    """RandAugment as ALBEF and FIBER use it: `operations` times one of ten operations (with repetition), each applied
    with probability 1/2, at a strength of magnitude / 10 of its range; grey outside the image."""
    level = magnitude / 10
    for _ in range(operations):
        name = RAND_AUGMENT[int(rng.integers(len(RAND_AUGMENT)))]
        applied, sign = rng.random() < 0.5, 1.0 if rng.random() < 0.5 else -1.0
        if applied:
            image = _operation(image, name, level, sign)
    return image


RAND_AUGMENT = (
    "Identity",
    "AutoContrast",
    "Equalize",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
)


def _operation(image: Image.Image, name: str, level: float, sign: float) -> Image.Image:
    """One operation; level in [0, 1]. Ranges of ALBEF: enhancement to 1.9, shear 0.3, shift 10 pixels, turn 30°."""
    match name:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Brightness":
            return ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * level)
        case "Sharpness":
            return ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * level)
        case "ShearX":
            return _affine(image, (1, sign * 0.3 * level, 0, 0, 1, 0))
        case "ShearY":
            return _affine(image, (1, 0, 0, sign * 0.3 * level, 1, 0))
        case "TranslateX":
            return _affine(image, (1, 0, sign * 10 * level, 0, 1, 0))
        case "TranslateY":
            return _affine(image, (1, 0, 0, 0, 1, sign * 10 * level))
        case "Rotate":
            return image.rotate(sign * 30 * level, Image.Resampling.BILINEAR, fillcolor=GREY)
    return image
