"""One place for encoded images: what kind, how large, which way up, whether they decode, and their pixels.

Names lie (NLVR2's `.png` files are often JPEG or GIF, web crawls hold HTML pages called `.jpg`), so only the bytes
are trusted. One rule of orientation for every format: an image is as its EXIF block (or its XMP) says that it is
displayed, in its size as in its pixels. Images stay uint8 until they are on the device, where the task normalises
them: a quarter of the bytes to move.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from fiber.errors import SampleFault

STORED = ("jpg", "png", "webp")  # what a shard may hold
MAX_PIXELS = 100_000_000  # larger images are faults: they would take gigabytes to decode
END = b"\xff\xd9"  # of a JPEG
FORMATS = (
    "JPEG",
    "PNG",
    "GIF",
    "BMP",
    "PPM",
    "WEBP",
    "TIFF",
    *(["AVIF"] if find_spec("PIL.AvifImagePlugin") else []),
)
"""What Pillow may take bytes for (MPO among JPEG): some others run programs (EPS: Ghostscript), whatever the name."""
ORIENTATION = 0x0112  # EXIF tag: 1 upright, 2-4 mirrored or upside down, 5-8 on its side

_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)
_XMP = b"tiff:Orientation"
_TURNS: dict[str, tuple[bytes, ...]] = {
    "jpg": (b"Exif\0\0", _XMP),
    "png": (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif"),
    "gif": (_XMP,),
    "bmp": (),
}
"""Without one of these in their bytes images of a kind are upright."""


def kind_of(data: bytes) -> str | None:
    """The true kind of encoded bytes by their magic number: jpg, png, webp, gif, bmp, tiff; None for no image."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)


def sniff(data: bytes) -> str | None:
    """The extension under which a shard holds these bytes; None where it may not."""
    kind = kind_of(data)
    return kind if kind in STORED else None


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS)


def orientation(data: bytes) -> int:
    """The orientation 1..8 that Pillow displays encoded bytes in, 1 where they name none or it cannot be read.

    That of EXIF, else of XMP, of a PNG also in ImageMagick's form. Pillow is asked only where one may be."""
    kind = kind_of(data) or ""
    told = {"jpg": _jpeg_head, "png": _png_chunks}.get(kind, bytes)(data)
    if not any(mark in told for mark in _TURNS.get(kind, (b"",))):
        return 1
    try:
        with quiet(), _opened(data) as image:
            if image.format == "PNG":
                image.load()  # its block may stand behind the pixels
            turn = int(image.getexif().get(ORIENTATION, 1))
            return turn if 1 <= turn <= 8 else 1
    except Exception:  # Pillow raises OSError, SyntaxError, struct.error, ... on damaged files
        return 1


def _jpeg_head(data: bytes) -> bytes:
    """What stands before the coded pixels."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[:at]


def _png_chunks(data: bytes) -> bytes:
    """How the chunks begin: their names, and keywords of texts."""
    at, found = 8, []
    while at + 8 <= len(data):
        found.append(data[at + 4 : at + 40])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return b"\0".join(found)


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels as displayed, from the header. Raises SampleFault("undecodable_image")."""
    try:
        with quiet():
            width, height = _stored_size(data)
    except Exception as error:
        raise SampleFault("undecodable_image", f"{len(data)} bytes: {_said(error)}") from None
    return (height, width) if orientation(data) >= 5 else (width, height)


def _stored_size(data: bytes) -> tuple[int, int]:
    if kind_of(data) == "png":
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    if kind_of(data) == "jpg":
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
            return width, height
        except KeyError:  # a colour space it does not know, such as CMYK
            pass
    with _opened(data) as image:
        turned = (
            getattr(image, "tag_v2", {}).get(ORIENTATION, 1) >= 5
        )  # of a TIFF's tag Pillow gives the upright size
        return image.size[::-1] if turned else image.size


def huge(data: bytes) -> bool:
    """Whether the header promises more than MAX_PIXELS. Raises SampleFault("undecodable_image")."""
    width, height = upright_size(data)
    return width * height > MAX_PIXELS


def decode(data: bytes) -> np.ndarray:
    """Any JPEG, PNG or WebP -> uint8 RGB (H, W, 3), by libjpeg-turbo where the image is an ordinary JPEG.

    Raises SampleFault("undecodable_image" | "huge_image").
    """
    if kind_of(data) == "jpg" and orientation(data) == 1:
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            if space in ("YCbCr", "RGB", "Gray") and height * width <= MAX_PIXELS:
                return simplejpeg.decode_jpeg(data)
        except ValueError:
            pass  # damaged, or odd
    return np.array(decode_pil(check_decodes(data) if kind_of(data) == "jpg" and not huge(data) else data))


def decode_pil(data: bytes) -> Image.Image:
    """Any image of FORMATS -> upright RGB (H, W), all in Pillow.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to 8 bits.
    Raises SampleFault("undecodable_image" | "huge_image").
    """
    try:
        with quiet():
            image = _opened(data)
            if image.width * image.height > MAX_PIXELS:
                raise SampleFault("huge_image", f"{image.width}x{image.height} pixels")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except SampleFault:
        raise
    except Exception as error:
        raise SampleFault("undecodable_image", f"{len(data)} bytes: {_said(error)}") from None


def check_decodes(data: bytes) -> bytes:
    """Decode every pixel once -> the same bytes, a JPEG's end mark added where that is all it lacks. Raises
    SampleFault("undecodable_image") for data that is cut short or destroyed.

    What counts is what is missing: a JPEG's last two bytes are nothing, half of its coded data is half of the image.
    The strict decoder refuses every warning of its library, also the one for a missing end: so that is tried again.
    JPEGs are decoded to grey: every coded bit is still read (which is where damage shows), only the colour conversion
    is saved.
    """
    problem = ""
    for candidate in (data, data + END) if kind_of(data) == "jpg" else (data,):
        try:
            try:
                if kind_of(data) != "jpg":
                    raise KeyError
                simplejpeg.decode_jpeg(candidate, colorspace="GRAY", strict=True)
            except KeyError:  # nothing for it, or a colour space that it does not know, such as CMYK
                _load(candidate)
            return candidate
        except Exception as error:
            problem = problem or _said(error)
    raise SampleFault("undecodable_image", f"{len(data)} bytes: {problem}")


def _said(error: Exception) -> str:
    """What is wrong with an image, for people: of an unknown one Pillow names only a place in memory."""
    return "no known image, or cut in its header" if isinstance(error, UnidentifiedImageError) else str(error)


def _load(data: bytes) -> None:
    with quiet(), _opened(data) as image:
        image.load()


def described(data: bytes) -> str:
    """What bytes that are no known image seem to be, and what to do about it; for messages."""
    brand = data[8:12].decode("latin-1") if data[4:8] == b"ftyp" else ""
    if brand:
        name = {"heic": "HEIC", "heix": "HEIC", "mif1": "HEIF", "avif": "AVIF"}.get(brand, f"a media file ({brand})")
        return f"{name}: convert it to JPEG or PNG"
    if data.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image: run git lfs pull"
    if data[:512].lstrip()[:1] == b"<":
        return "an HTML or XML page"
    if data.startswith((b"%!PS", b"%PDF", b"\xc5\xd0\xd3\xc6")):
        return "a PostScript or PDF file: convert it to JPEG or PNG"
    if data[:2] in (b"P5", b"P6"):
        return "a PPM file: convert it to JPEG or PNG"
    return f"first bytes {data[:8]!r}" if data else "an empty file"


def shrink(data: bytes, max_side: int | None, quality: int) -> bytes:
    """An upright RGB JPEG with the long side at most `max_side` pixels (None: size unchanged). Of a JPEG of more than
    MAX_PIXELS no more is decoded than that needs. Raises SampleFault."""
    if max_side is not None and kind_of(data) == "jpg" and huge(data):
        try:
            size = upright_size(data)
            image = decode_reduced(data, max(1, max_side * min(size) // max(size)))
        except Exception as error:
            raise SampleFault("undecodable_image", f"{len(data)} bytes: {_said(error)}") from None
    else:
        image = decode_pil(data)
    if max_side is not None and max(image.size) > max_side:
        scale = max_side / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def decode_reduced(data: bytes, side: int) -> Image.Image:
    """A JPEG of any size -> upright RGB at the smallest of 1/2, 1/4, 1/8 of its size that keeps both sides at `side`
    px. Raises what Pillow raises."""
    with quiet(), _opened(data) as image:
        image.draft("RGB", (side, side))
        return ImageOps.exif_transpose(image).convert("RGB")


@contextmanager
def quiet() -> Iterator[None]:
    """Pillow's own limit on pixels lifted (ours is `MAX_PIXELS`), and its notes on odd but readable files
    silenced. Both are states of the whole process: of threads that decode side by side, the first that comes changes
    them and the last that goes restores them."""
    with _QUIET.lock:
        _QUIET.inside += 1
        if _QUIET.inside == 1:
            _QUIET.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            _QUIET.notes = warnings.catch_warnings()
            _QUIET.notes.__enter__()
            warnings.simplefilter("ignore")
    try:
        yield
    finally:
        with _QUIET.lock:
            _QUIET.inside -= 1
            if _QUIET.inside == 0:
                _QUIET.notes.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = _QUIET.limit


class _Quiet:
    """How many threads are inside of `quiet`, and what was before the first."""

    lock, inside = threading.Lock(), 0
    limit: int | None = None
    notes: warnings.catch_warnings = warnings.catch_warnings()


_QUIET = _Quiet()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
