"""Any image a user has becomes upright RGB; sources expand to files."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fiber.predict import sources as module
from fiber.predict.listing import ImageList
from fiber.predict.sources import ImageError, open_image
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


def test_images_from_memory_that_are_none_are_said():
    for source in (
        np.zeros((6, 8, 3), np.float32), np.zeros((3, 6, 8), np.uint8), np.zeros((6, 8), np.int64),
        np.zeros((0, 8, 3), np.uint8), np.zeros((6, 8, 2), np.uint8), torch.zeros(3, 6, 8, dtype=torch.uint8), None,
        Image.new("I", (8, 6), -1), Image.new("I", (8, 6), 2**16),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=r"an image from memory: uint8 \(H,W\), \(H,W,3\) or \(H,W,4\), got"):
            open_image(source)
    for mode in ("La", "RGBa", "I;16"):
        assert open_image(Image.new(mode, (8, 6))).width == 8


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


def test_files_folders_and_globs_are_listed_in_order_and_once(tmp_path):
    made = images(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()

    def listed(*sources) -> list[Path]:
        files = ImageList(sources)
        found = [Path(file.name) for file in files]
        assert len(files) == len(found) == len({file.relative for file in files})
        return found

    assert listed(tmp_path / "a") == sorted(made.values())
    assert listed(made["rgb"], str(tmp_path / "a" / "*.jpg")) == [made["rgb"], made["cmyk"], made["turned"]]
    for source, message in ((tmp_path / "empty", "no images in the folder"), (tmp_path / "*.bmp", "no such file")):
        with pytest.raises(ImageError, match=message):
            listed(source)


def test_folders_in_folders_are_walked_in_the_order_of_their_paths(tmp_path):
    for name in ("b.png", "a/z.png", "a/y/x.png", "c/d.png", "a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(tmp_path / name)
    files = list(ImageList([tmp_path]))
    assert [file.relative for file in files] == ["a/y/x.png", "a/z.png", "a.png", "b.png", "c/d.png"]
    assert [Path(file.name) for file in files] == sorted(tmp_path.rglob("*.png"))
    assert [file.relative for file in ImageList([f"{tmp_path}/"])] == [file.relative for file in files]
    both = ImageList([tmp_path / "a", tmp_path])
    assert [Path(file.relative) for file in both][:3] == [
        tmp_path / "a/y/x.png",
        tmp_path / "a/z.png",
        tmp_path / "a.png",
    ]
    assert ImageList([tmp_path]).file("a/z.png").read() == (tmp_path / "a/z.png").read_bytes()


def test_members_of_a_tar_are_images_where_they_lie(tmp_path):
    made = images(tmp_path / "a")
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for number, path in enumerate(made.values()):
            tar.add(path, f"part{number % 2}/{path.name}")
        tar.add(__file__, "notes.txt")
    alone = ImageList([tmp_path / "some.tar"])
    assert len(alone) == len(made)
    for file, path in zip(alone, made.values(), strict=True):
        assert Path(file.relative).name == path.name
        assert file.name == f"{tmp_path}/some.tar/{file.relative}"
        assert file.read() == path.read_bytes()
        np.testing.assert_array_equal(np.asarray(open_image(file).image), np.asarray(open_image(path).image))
        assert alone.file(file.relative) == file
    assert next(file.relative for file in ImageList([tmp_path / "some.tar", made["rgb"]])).startswith(str(tmp_path))
    for name, mode in (("packed.tar.gz", "w:gz"), ("none.tar", "w")):
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.add(__file__, "notes.txt")
    whole = (tmp_path / "some.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 3])
    for name, why in (("packed.tar.gz", "unpack it"), ("none.tar", "no images in the tar"), ("cut.tar", "whole")):
        with pytest.raises(ImageError, match=rf"{name}.*{why}|{why}.*{name}"):
            list(ImageList([tmp_path / name]))


def test_a_damaged_tar_is_an_error_that_names_the_byte(tmp_path):
    """A header of three is destroyed, or the end is missing: tarfile alone stops there as at the end."""
    made = [*images(tmp_path / "a").values()][:3]
    places = []
    with tarfile.open(tmp_path / "SOME.TAR", "w") as tar:
        for path in made:
            places.append(tar.offset)
            tar.add(path, path.name)
        end = tar.offset
    whole = (tmp_path / "SOME.TAR").read_bytes()
    assert len(list(ImageList([tmp_path / "SOME.TAR"]))) == 3
    second = places[1]
    for damaged, byte in ((whole[:second] + b"x" * 512 + whole[second + 512 :], second), (whole[:end], end)):
        (tmp_path / "damaged.tar").write_bytes(damaged)
        with pytest.raises(ImageError, match=rf"damaged\.tar: .*no end-of-archive mark at byte {byte} of"):
            list(ImageList([tmp_path / "damaged.tar"]))


def test_linked_folders_are_walked_once_and_pipes_never(tmp_path):
    path = images(tmp_path / "a" / "inner")["rgb"]
    for other in (tmp_path / "a" / "inner").iterdir():
        if other != path:
            other.unlink()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "linked").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "inner" / "back").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    for folder, name in (("a", f"inner/{path.name}"), ("b", f"linked/inner/{path.name}")):
        assert [file.relative for file in ImageList([tmp_path / folder])] == [name]
    with pytest.raises(ImageError, match="no such file"):
        list(ImageList([tmp_path / "b" / "pipe.png"]))
