"""One image of a user's own, from a file, a tar or memory, to upright RGB and to what a model takes."""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from fiber.errors import SampleFault
from fiber.images.codec import MAX_PIXELS, decode, decode_pil, decode_reduced, described, kind_of, upright_size

FROM_MEMORY = "an image from memory: uint8 (H,W), (H,W,3) or (H,W,4)"
REDUCED_SIDE = 2048  # a JPEG beyond MAX_PIXELS is decoded at a fraction of its size, its sides no smaller than this


class ImageError(ValueError):
    """An image that cannot be read, or a source without images; the message names it."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image that lies in a file: `name` is its path, or TAR/MEMBER; `relative` its name below the folder or in
    the tar that was given alone, else `name`. `size` bytes of `path` from `offset` on are the image (None: the whole
    file)."""

    name: str
    relative: str
    path: str
    offset: int = 0
    size: int | None = None

    def stamp(self) -> tuple[int, int, int]:
        """Offset, bytes and time of change (ns): an image with the same name and stamp is the same. Raises
        ImageError."""
        try:
            facts = os.stat(self.path)
        except OSError as error:
            raise ImageError(f"{self.name}: {error.strerror}") from None
        return self.offset, facts.st_size if self.size is None else self.size, facts.st_mtime_ns

    def read(self) -> bytes:
        """The encoded image. Raises ImageError."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                return file.read() if self.size is None else file.read(self.size)
        except OSError as error:
            raise ImageError(f"{self.name}: {error.strerror}") from None


@dataclass(frozen=True)
class InputImage:
    """`image`: upright RGB, possibly reduced; `width` and `height` px of the upright original, in which boxes are
    given; `name`: the path, or "" for an image that came from memory."""

    image: Image.Image
    width: int
    height: int
    name: str


@dataclass(frozen=True)
class Prepared:
    """An image as one model takes it (`Predictor.prepare`): pixels uint8 RGB (3,h,w) in the size of its input; the
    rest as in `InputImage`."""

    pixels: Tensor
    width: int
    height: int
    name: str


ImageSource = str | Path | ImageFile | InputImage | Image.Image | np.ndarray | Prepared


def open_image(source: str | Path | ImageFile | InputImage | Image.Image | np.ndarray) -> InputImage:
    """A file, a PIL image of any mode, or an array (H,W), (H,W,3) or (H,W,4) uint8 -> InputImage.

    EXIF orientation is applied, transparency laid over white. Raises ImageError.
    """
    if isinstance(source, InputImage):
        return source
    if isinstance(source, str | Path):
        source = ImageFile(str(source), str(source), str(source))
    if isinstance(source, ImageFile):
        return decode_image(source.read(), source.name)
    image = source if isinstance(source, Image.Image) else _of_array(source)
    buffer = io.BytesIO()
    # One path for all modes: as a lossless file. PNG knows neither CMYK and kin nor floats.
    known = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("La", "RGBa"):  # Pillow turns these into nothing else
            upright = upright.convert(upright.mode.upper())
        if upright.mode == "I" and not all(0 <= end(np.asarray(upright)) < 2**16 for end in (np.min, np.max)):
            raise ValueError("mode I holds numbers outside of 16 bits")
        (upright if upright.mode in known else upright.convert("RGB")).save(buffer, "PNG", compress_level=0)
    except (ValueError, OSError, SystemError) as error:
        raise ImageError(f"{FROM_MEMORY}, got mode {image.mode}, {image.size}: {error}") from None
    return decode_image(buffer.getvalue(), "")


def _of_array(source: np.ndarray) -> Image.Image:
    """Raises ImageError for anything but whole numbers of a byte as rows and columns."""
    kind = type(source).__name__
    if not isinstance(source, np.ndarray):
        raise ImageError(f"{FROM_MEMORY}, got {kind}")
    grey, colours = source.ndim == 2, source.ndim == 3 and source.shape[2] in (3, 4)
    if source.dtype != np.uint8 or not (grey or colours) or not source.size:
        raise ImageError(f"{FROM_MEMORY}, got {source.dtype} {source.shape}")
    return Image.fromarray(source)


def decode_image(data: bytes, name: str) -> InputImage:
    """Encoded bytes, called `name` in messages. Raises ImageError."""
    try:
        width, height = upright_size(data)
        huge_jpeg = kind_of(data) == "jpg" and width * height > MAX_PIXELS
        if huge_jpeg:
            image = decode_reduced(data, REDUCED_SIDE)
        else:
            image = Image.fromarray(decode(data)) if kind_of(data) == "jpg" else decode_pil(data)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ... on damaged files
        known = isinstance(error, SampleFault) and kind_of(data) is not None
        why = error if known else f"not a readable image ({described(data)})"
        raise ImageError(f"{name or 'image'}: {why}") from None
    if not huge_jpeg:
        width, height = image.size
    return InputImage(image, width, height, name)
