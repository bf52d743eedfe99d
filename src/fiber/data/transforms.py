"""From encoded image bytes to uint8 pixels: decoding, plain resizing, and the augmentation of downstream tasks.

Pictures stay uint8 until they are on the device, where the task normalises them: a quarter of the bytes to move.
Every random choice comes from the generator passed in.
"""

from __future__ import annotations

import io
import math
import re
import warnings

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from fiber.data.records import SampleFault, sniff

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet statistics of RGB in [0, 1]."""

MAX_PIXELS = 100_000_000  # larger pictures are faults: they would take gigabytes to decode
ORIENTATION = 0x0112
GREY = (128, 128, 128)


def decode(data: bytes) -> np.ndarray:
    """Any JPEG, PNG or WebP -> uint8 RGB (H, W, 3), by libjpeg-turbo where the picture is an ordinary JPEG.

    Raises SampleFault("undecodable_image" | "huge_image").
    """
    if sniff(data) == "jpg" and not _turned(data):
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            if space in ("YCbCr", "RGB", "Gray") and height * width <= MAX_PIXELS:
                return simplejpeg.decode_jpeg(data)
        except ValueError:
            pass  # damaged in a way Pillow may tolerate; if not, it says what is wrong
    return np.array(decode_pil(data))


def _turned(data: bytes) -> bool:
    """Whether a JPEG's EXIF block asks to turn or mirror it."""
    if b"Exif\0\0" not in data[:4096]:
        return False
    try:
        return Image.open(io.BytesIO(data)).getexif().get(ORIENTATION, 1) != 1
    except Exception:
        return True  # let Pillow say what is wrong


def decode_pil(data: bytes) -> Image.Image:
    """Any image Pillow reads -> upright RGB (H, W), all in Pillow.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to 8 bits.
    Raises SampleFault("undecodable_image" | "huge_image").
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on odd but readable files
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise SampleFault("huge_image", f"{image.width}x{image.height} pixels")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except SampleFault:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ... on damaged files
        raise SampleFault("undecodable_image", f"{len(data)} bytes: {error}") from None


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) of the upright picture from its header. Raises SampleFault("undecodable_image")."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            return (image.height, image.width) if turned else image.size
    except Exception as error:
        raise SampleFault("undecodable_image", f"{len(data)} bytes: {error}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


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


def load_image(data: bytes, size: int, exact: bool = False) -> Tensor:
    """Encoded bytes -> uint8 (3, size, size), plain resize; `exact` goes through Pillow alone."""
    return resize_pil(decode_pil(data), size) if exact else resize_fast(decode(data), size)


SIDES = re.compile(r"\b(left|right)(s|ward|wards|most|hand|-hand|er|y|ies)?\b", re.IGNORECASE)


def mentions_sides(text: str) -> bool:
    """Whether a text speaks of left or right, so that mirroring its picture would make it false."""
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
    with probability 1/2, at a strength of magnitude / 10 of its range; grey outside the picture."""
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
