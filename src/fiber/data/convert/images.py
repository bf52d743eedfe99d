"""RawImage files as they come: what they really are, how large, whether they decode, and how to make them smaller.

Names lie (NLVR2's ``.png`` files are often JPEG or GIF, web crawls hold HTML pages called ``.jpg``), so only the
bytes are trusted. Bytes go into the shards unchanged unless a smaller or re-encoded image is asked for.
"""

from __future__ import annotations

import io
import struct
import warnings

import simplejpeg
from PIL import Image

from fiber.errors import SampleFault

STORED = ("jpg", "png", "webp")  # what a shard may hold

_ORIENTATION = 0x0112  # EXIF tag

MAX_PIXELS = 100_000_000  # more take gigabytes to decode; the loader refuses them too

_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)


class StoredImageError(Exception):
    """The bytes cannot be used as an image. ``reason`` is a short stable phrase for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def sniff(data: bytes) -> str:
    """File kind from the first bytes: jpg, png, webp, gif, bmp or tiff. Raises StoredImageError for anything else."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if not data:
        raise StoredImageError("empty file", "0 bytes")
    if data[:512].lstrip()[:1] == b"<":
        raise StoredImageError("not an image", "an HTML or XML page")
    raise StoredImageError("not an image", f"first bytes {data[:8]!r}")


def size_of(data: bytes, kind: str) -> tuple[int, int]:
    """(width, height) in pixels of the upright image, from the header alone. Raises StoredImageError."""
    try:
        if kind == "jpg":
            try:
                height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
                return (height, width) if _lies_on_its_side(data) else (width, height)
            except KeyError:  # a colour space it does not know, such as CMYK
                return _open(data).size
        if kind == "png":
            return struct.unpack(">II", data[16:24])
    except (ValueError, struct.error) as error:
        raise StoredImageError("broken image", str(error)) from None
    return _open(data).size


def check_decodes(data: bytes, kind: str) -> None:
    """Decode every pixel once; raise StoredImageError for truncated or corrupt data.

    JPEGs are decoded to grey: every entropy-coded bit is still read (which is where damage shows), only the colour
    conversion is saved. What simplejpeg cannot express (CMYK) or is stricter about gets a second opinion from Pillow.
    """
    if kind == "jpg":
        try:
            simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True)
            return
        except (ValueError, KeyError):
            pass
    _open(data)


def shrink(data: bytes, max_side: int | None, quality: int) -> bytes:
    """Re-encode as an RGB JPEG with the long side at most ``max_side`` pixels (None: size unchanged)."""
    from fiber.images.codec import decode_pil  # brings torch: only where it is needed

    try:
        image = decode_pil(data)
    except SampleFault as fault:
        raise StoredImageError("broken image", str(fault)) from None
    if max_side is not None and max(image.size) > max_side:
        scale = max_side / max(image.size)
        image = image.resize(tuple(max(1, round(side * scale)) for side in image.size), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _lies_on_its_side(data: bytes) -> bool:
    """Whether a camera's EXIF block asks to turn the JPEG by a quarter, as the loader does."""
    if b"Exif\0\0" not in data[:4096]:
        return False
    try:
        return Image.open(io.BytesIO(data)).getexif().get(_ORIENTATION, 1) >= 5
    except (OSError, ValueError, SyntaxError, struct.error):
        return False


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            image.load()
            return image
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise StoredImageError("broken image", str(error)) from None
