"""Any image a user has becomes upright RGB; sources expand to files."""

import numpy as np
import pytest
from PIL import Image

from fiber.predict import sources as module
from fiber.predict.sources import ImageError, expand, open_image
from tiny_exports import images


def test_every_mode_shows_the_same_scene(tmp_path):
    made = images(tmp_path)
    for name, path in made.items():
        opened = open_image(path)
        assert opened.image.mode == "RGB"
        assert (opened.width, opened.height) == opened.image.size
        assert opened.name == str(path)
        if name in ("thin", "pixel"):
            continue
        assert opened.image.size == (90, 60), name
        pixels = np.asarray(opened.image).astype(int)
        left, right = pixels[5:55, 5:40].mean(), pixels[5:55, 50:85].mean()
        assert left > right + 60, name  # the light half is on the left, whatever the file's orientation
        grey = name in ("grey", "grey16", "bilevel")
        assert (np.abs(pixels[..., 0] - pixels[..., 2]).max() < 12) == grey, name


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert np.asarray(open_image(clear).image).min() == 255


def test_images_from_memory_of_any_mode():
    array = np.zeros((6, 8, 3), np.uint8)
    for source in (array, Image.fromarray(array).convert("CMYK"), Image.fromarray(array).convert("LAB")):
        opened = open_image(source)
        assert (opened.width, opened.height, opened.name) == (8, 6, "")
        assert np.asarray(opened.image).max() <= 3


def test_a_huge_jpeg_is_reduced_and_keeps_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 1000 * 1000)
    monkeypatch.setattr(module, "REDUCED_SIDE", 300)
    image = Image.new("RGB", (1600, 1200), "green")
    image.paste("red", (0, 0, 800, 1200))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "huge.jpg", exif=exif)
    opened = open_image(tmp_path / "huge.jpg")
    assert (opened.width, opened.height) == (1200, 1600)
    assert opened.image.size == (300, 400)
    red = np.asarray(opened.image)[100, 150]
    assert red[0] > 200
    assert red[1] < 60


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    whole = tmp_path / "whole.png"
    Image.new("RGB", (50, 50), "red").save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:90])
    for name in ("a.jpg", "cut.png", "absent.jpg"):
        with pytest.raises(ImageError, match=name.replace(".", r"\.")):
            open_image(tmp_path / name)


def test_files_folders_and_globs_expand_in_order_and_once(tmp_path):
    made = images(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    assert expand([tmp_path / "a"]) == sorted(made.values())
    assert expand([made["rgb"], str(tmp_path / "a" / "*.jpg")]) == [made["rgb"], made["cmyk"], made["turned"]]
    for source, message in ((tmp_path / "empty", "no images in the folder"), (tmp_path / "*.bmp", "no such file")):
        with pytest.raises(ImageError, match=message):
            expand([source])
