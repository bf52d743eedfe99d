"""From encoded image bytes to uint8 pixels: decoding, plain resizing, and the augmentation of downstream tasks.

Images stay uint8 until they are on the device, where the task normalises them: a quarter of the bytes to move.
Every random choice comes from the generator passed in.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from fiber.errors import SampleFault

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet statistics of RGB in [0, 1]."""

MAX_PIXELS = 100_000_000  # larger images are faults: they would take gigabytes to decode
ORIENTATION = 0x0112


def decode(data: bytes) -> np.ndarray:
    """Any JPEG, PNG or WebP -> uint8 RGB (H, W, 3), by libjpeg-turbo where the image is an ordinary JPEG.

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
    """(width, height) of the upright image from its header. Raises SampleFault("undecodable_image")."""
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


def sniff(data: bytes) -> str | None:
    """The true extension of encoded image bytes by their magic number; None if not one of EXTENSIONS."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None
