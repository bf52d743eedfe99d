"""Decoding of every kind of image, resizing against Pillow and torchvision's rule, and augmentation's ranges."""

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from skimage import data
from torchvision.transforms import RandomResizedCrop

from fiber.errors import SampleFault
from fiber.images.augment import GREY, RAND_AUGMENT, _operation, augment, mentions_sides, rand_augment, random_crop
from fiber.images.codec import (
    check_decodes,
    decode,
    decode_pil,
    described,
    kind_of,
    orientation,
    quiet,
    sniff,
    upright_size,
)
from fiber.images.resize import load_image, resize_fast, resize_pil


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(data.astronaut()).resize((500, 375))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_threads_that_decode_leave_the_process_as_it_was() -> None:
    """Pillow's limit and the filters of warnings belong to the whole process: of two threads the one that comes last
    must not keep what the first had set."""
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS is None  # the second is still inside
    second.__exit__(None, None, None)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_a_plain_jpeg_decodes_as_pillow_does(photo: Image.Image) -> None:
    file = encoded(photo, quality=90)
    expected = np.asarray(Image.open(io.BytesIO(file)))
    assert np.array_equal(decode(file), expected)
    assert np.array_equal(np.asarray(decode_pil(file)), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpeg_modes_become_rgb(photo: Image.Image, mode: str) -> None:
    found = decode(encoded(photo.convert(mode), quality=95)).astype(int)
    expected = np.asarray(photo.convert(mode).convert("RGB")).astype(int)
    assert found.shape == (375, 500, 3)
    assert np.abs(found - expected).mean() < 2


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "1"), ("PNG", "L"), ("PNG", "P"), ("PNG", "RGB"), ("WEBP", "L"), ("WEBP", "RGB")]
)
def test_lossless_files_are_exact(photo: Image.Image, mode: str, kind: str) -> None:
    image = photo.convert(mode)
    assert np.array_equal(decode(encoded(image, kind, lossless=True)), np.asarray(image.convert("RGB")))


def test_transparency_is_laid_over_white() -> None:
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[:2, :, :] = (200, 0, 0, 255)
    pixels[2:, :, :] = (0, 0, 100, 51)  # one fifth opaque
    found = decode(encoded(Image.fromarray(pixels, "RGBA"), "PNG"))
    assert found[0, 0].tolist() == [200, 0, 0]
    assert found[3, 0].tolist() == pytest.approx([204, 204, 224], abs=1)
    palette = Image.fromarray(np.zeros((4, 4), dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30] + [0] * 765)
    assert (decode(encoded(palette, "PNG", transparency=0)) == 255).all()


def test_sixteen_bit_grey_is_scaled() -> None:
    ramp = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(decode(encoded(Image.fromarray(ramp), "PNG"))[..., 1].ravel(), np.arange(256))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(photo: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(photo, quality=95, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
    assert np.array_equal(decode(file), np.asarray(expected))
    assert upright_size(file) == expected.size


def test_content_decides_not_the_name(photo: Image.Image) -> None:
    """Nothing here takes a name: a PNG that a shard calls .jpg decodes by its bytes."""
    assert np.array_equal(decode(encoded(photo, "PNG")), np.asarray(photo))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.97])
def test_cut_files_are_faults(photo: Image.Image, share: float) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        file = encoded(photo, kind)
        with pytest.raises(SampleFault) as fault:
            decode(file[: int(len(file) * share)])
        assert fault.value.reason == "undecodable_image"
        assert " at 0x" not in str(fault.value)  # a place in memory, which Pillow's message has


def test_formats_that_run_programs_are_not_opened(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives PostScript to Ghostscript, whatever the name; the documented kinds are read as before."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    program = encoded(photo.resize((8, 8)), "EPS")
    for read in (decode, decode_pil, upright_size, check_decodes):
        with pytest.raises(SampleFault, match="no known image"):
            read(program)
    assert "PostScript" in described(program)
    assert orientation(program) == 1
    for kind in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        assert decode_pil(encoded(photo, kind)).size == photo.size


def test_huge_images_are_faults() -> None:
    header = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    big = Image.new("1", (20000, 6000))
    with pytest.raises(SampleFault) as fault:
        decode(encoded(big, "PNG"))
    assert fault.value.reason == "huge_image"
    assert decode(bytes(header)).shape == (8, 8, 3)


def test_exact_resize_is_pillows(photo: Image.Image) -> None:
    file = encoded(photo)
    expected = np.asarray(Image.open(io.BytesIO(file)).resize((96, 96), Image.Resampling.BICUBIC))
    found = load_image(file, 96, pil_resize=True)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("size", [64, 384, 600])
def test_fast_resize_stays_within_two_levels_of_pillow(photo: Image.Image, size: int) -> None:
    fast, exact = resize_fast(np.array(photo), size).int(), resize_pil(photo, size).int()
    assert fast.shape == exact.shape == (3, size, size)
    assert (fast - exact).abs().max() <= 2
    assert (fast - exact).abs().float().mean() < 0.1


def test_crops_have_the_areas_and_shapes_of_torchvisions(photo: Image.Image) -> None:
    rng = np.random.default_rng(0)
    shares, aspects = [], []
    for _ in range(2000):
        x0, y0, x1, y1 = random_crop(500, 375, rng)
        assert 0 <= x0 < x1 <= 500
        assert 0 <= y0 < y1 <= 375
        shares.append((x1 - x0) * (y1 - y0) / 187_500)
        aspects.append((x1 - x0) / (y1 - y0))
    assert min(shares) > 0.49
    assert max(shares) <= 1
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(photo, [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    expected = np.mean([h * w for _, _, h, w in theirs]) / (photo.width * photo.height)
    assert np.mean(shares) == pytest.approx(expected, abs=0.015)
    assert min(aspects) > 0.74
    assert max(aspects) < 1.35
    assert random_crop(1000, 10, rng) == (493, 0, 506, 10), "the widest central crop of a strip"


def test_augmentation_depends_on_its_generator_alone(photo: Image.Image) -> None:
    first = augment(photo, 64, np.random.default_rng(5))
    assert torch.equal(first, augment(photo, 64, np.random.default_rng(5)))
    assert not torch.equal(first, augment(photo, 64, np.random.default_rng(6)))
    assert first.shape == (3, 64, 64)
    assert first.dtype == torch.uint8


def test_without_flip_left_stays_left() -> None:
    pixels = np.zeros((60, 60, 3), dtype=np.uint8)
    pixels[:, :30] = 255
    image = Image.fromarray(pixels)

    def left_is_brighter(seed: int, flip: bool) -> bool:
        out = augment(image, 60, np.random.default_rng(seed), flip=flip).float()
        return bool(out[..., 5:20].mean() > out[..., 40:55].mean())

    assert all(left_is_brighter(seed, flip=False) for seed in range(60))
    mirrored = sum(not left_is_brighter(seed, flip=True) for seed in range(60))
    assert 15 < mirrored < 45


def test_operations_move_pixels_by_their_ranges() -> None:
    """A white dot at level 0.7: shift of 7 pixels, shear of 0.21 by row, turn of 21°; grey comes in at the edges."""
    dot = np.zeros((101, 101, 3), dtype=np.uint8)
    dot[50, 60] = 255

    def moved(name: str) -> tuple[float, float]:
        out = np.asarray(_operation(Image.fromarray(dot), name, 0.7, 1.0)).astype(float)[..., 0]
        out[out == GREY[0]] = 0
        y, x = np.unravel_index(out.argmax(), out.shape)
        return float(y), float(x)

    assert moved("TranslateX") == (50, 53)
    assert moved("TranslateY") == (43, 60)
    assert moved("ShearX") == pytest.approx((50, 60 - 0.21 * 50), abs=1)
    assert moved("ShearY") == pytest.approx((50 - 0.21 * 60, 60), abs=1)
    assert moved("Rotate") == pytest.approx(
        (50 - 10 * np.sin(np.radians(21)), 50 + 10 * np.cos(np.radians(21))), abs=1
    )
    edge = np.asarray(_operation(Image.fromarray(dot), "TranslateX", 0.7, 1.0))[:, -5:]
    assert (edge == GREY[0]).all()


def test_brightness_follows_its_factor_and_every_operation_runs(photo: Image.Image) -> None:
    flat = Image.new("RGB", (8, 8), (100, 100, 100))
    bright = np.asarray(_operation(flat, "Brightness", 0.7, 1.0))
    assert (bright == int(100 * 1.36)).all()
    for name in RAND_AUGMENT:
        out = _operation(photo, name, 0.7, -1.0)
        assert (out.size, out.mode) == (photo.size, "RGB")
    assert _operation(photo, "Identity", 0.7, 1.0) is photo


def test_a_quarter_of_the_images_and_a_tenth_more_stay_untouched(photo: Image.Image) -> None:
    """Two operations, each applied with probability 1/2 and the identity one time in ten: (1/2 + 1/20)^2."""
    rng, small = np.random.default_rng(0), photo.resize((16, 16))
    untouched = sum(rand_augment(small, rng) is small for _ in range(1500))
    assert untouched / 1500 == pytest.approx(0.55**2, abs=5 * (0.3 * 0.7 / 1500) ** 0.5)


@pytest.mark.parametrize("text", ["the LEFT dog", "man on the right-hand side", "leftmost cup", "dogs, right"])
def test_sides_are_found(text: str) -> None:
    assert mentions_sides(text)


@pytest.mark.parametrize("text", ["a bright light", "cleft rock", "the dog above", ""])
def test_other_words_are_not_sides(text: str) -> None:
    assert not mentions_sides(text)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_one_rule_of_orientation_for_every_format(kind: str, turn: int) -> None:
    """Size and pixels are those of Pillow's own transposition, whatever the format."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:8, :8] = 255  # a white corner, which every turn moves elsewhere
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = turn
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif, **({"quality": 100} if kind in ("JPEG", "WEBP") else {}))
    data = stream.getvalue()
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert orientation(data) == turn
    assert upright_size(data) == expected.size
    assert np.array_equal(decode(data), np.asarray(expected))
    assert kind_of(data) == {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tiff"}[kind]
    assert sniff(data) == (None if kind == "TIFF" else kind_of(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "PNG of ImageMagick"])
@pytest.mark.parametrize("turn", [3, 6])
def test_orientation_without_an_exif_block(kind: str, turn: int) -> None:
    """What Pillow turns when it decodes is turned in the size, too."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:8, :8] = 255
    kind, _, tool = kind.partition(" of ")
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{turn}"/></x:xmpmeta>'
    options: dict[str, object] = {"xmp": xmp.encode()} | ({"quality": 100} if kind in ("JPEG", "WEBP") else {})
    if kind == "PNG":
        options, exif = {"pnginfo": (info := PngInfo())}, Image.Exif()
        exif[0x0112] = turn
        if tool:
            info.add_text(
                "Raw profile type exif", f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n", zip=True
            )
        else:
            info.add_itxt("XML:com.adobe.xmp", xmp)
    elif kind == "TIFF":
        options = {"tiffinfo": {700: xmp.encode()}}
    data = encoded(Image.fromarray(pixels), kind, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert expected.size == ((24, 40) if turn == 6 else (40, 24))
    assert orientation(data) == turn
    assert upright_size(data) == expected.size
    assert np.array_equal(decode(data), np.asarray(expected))


def test_pixels_need_no_torch() -> None:
    """Conversions run in many small processes: none of them loads torch for its images."""
    code = "import sys; import fiber.images.codec, fiber.data.convert.packing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
