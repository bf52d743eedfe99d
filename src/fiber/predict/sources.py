"""A user's own images: files, folders and globs to paths, and any image file to upright RGB."""

import glob
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fiber.errors import SampleFault
from fiber.images.codec import MAX_PIXELS, check_decodes, decode_pil, decode_reduced, described, kind_of, upright_size

EXTENSIONS = {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".jfif",
    ".avif",
    ".heic",
    ".heif",
}
REDUCED_SIDE = 2048  # a JPEG beyond MAX_PIXELS is decoded at a fraction of its size, its sides no smaller than this

ImageSource = str | Path | Image.Image | np.ndarray


class ImageError(ValueError):
    """An image that cannot be read, or a source without images; the message names it."""


@dataclass(frozen=True)
class InputImage:
    """`image`: upright RGB, possibly reduced; `width` and `height` px of the upright original, in which boxes are
    given; `name`: the path, or "" for an image that came from memory."""

    image: Image.Image
    width: int
    height: int
    name: str


def open_image(source: ImageSource) -> InputImage:
    """A path, a PIL image of any mode, or an array (H,W), (H,W,3) or (H,W,4) uint8 -> InputImage.

    EXIF orientation is applied, transparency laid over white. Raises ImageError.
    """
    if isinstance(source, str | Path):
        return _open_file(Path(source))
    image = source if isinstance(source, Image.Image) else Image.fromarray(np.asarray(source))
    buffer = io.BytesIO()
    # One path for all modes: as a lossless file. PNG knows neither CMYK and kin nor floats.
    known = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
    upright = ImageOps.exif_transpose(image)
    (upright if upright.mode in known else upright.convert("RGB")).save(buffer, "PNG", compress_level=0)
    return _decode(buffer.getvalue(), "")


def expand(sources: Iterable[str | Path]) -> list[Path]:
    """Files, folders (their images, recursively, sorted) and globs -> paths in order, each once. Raises
    ImageError for a source that yields nothing."""
    paths: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        elif path.is_file():
            found = [path]
        else:
            found = sorted(Path(match) for match in glob.glob(str(source), recursive=True) if Path(match).is_file())
        if not found:
            kind = "no images in the folder" if path.is_dir() else "no such file, folder or match:"
            raise ImageError(f"{kind} {source}")
        paths |= dict.fromkeys(found)
    return list(paths)


def _open_file(path: Path) -> InputImage:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
    return _decode(data, str(path))


def _decode(data: bytes, name: str) -> InputImage:
    try:
        width, height = upright_size(data)
        huge_jpeg = kind_of(data) == "jpg" and width * height > MAX_PIXELS
        if kind_of(data) == "jpg" and not huge_jpeg:
            data = check_decodes(data)
        image = decode_reduced(data, REDUCED_SIDE) if huge_jpeg else decode_pil(data)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ... on damaged files
        known = isinstance(error, SampleFault) and kind_of(data) is not None
        why = error if known else f"not a readable image ({described(data)})"
        raise ImageError(f"{name or 'image'}: {why}") from None
    if not huge_jpeg:
        width, height = image.size
    return InputImage(image, width, height, name)
