"""The index of many images: made in batches, goes on after a kill, survives damage, replaces no other file."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fiber.predict import image_index
from fiber.predict.base import Predictor
from fiber.predict.image_index import ImageIndex, build_index, cache_file, read_index
from fiber.predict.listing import ImageList
from fiber.predict.sources import ImageError, Prepared, open_image
from fiber.predict.stream import load_ahead


class Counting:
    """A model whose feature of an image is its red value and its side; counts what it computes, and can be killed."""

    width, batch, workers = 2, 2, 1

    def __init__(self, model: str = "m", dies_after: int = 1_000) -> None:
        self.model, self.left = model, dies_after
        self.batches: list[int] = []

    fitting = Predictor.fitting
    stream = Predictor.stream

    def fingerprint(self, *patterns: str) -> str:
        return self.model

    def prepare(self, source) -> Prepared:
        image = open_image(source)
        return Prepared(torch.from_numpy(np.array(image.image)), image.width, image.height, image.name)

    def features(self, images: list[Prepared]) -> list[torch.Tensor]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.batches.append(len(images))
        return [torch.tensor([float(image.pixels[0, 0, 0]), float(image.width)]) for image in images]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "index.npz"


EXPECTED = [[0.0, 8.0], [1.0, 8.0], [2.0, 8.0]]


def index(folder: Path, file: Path, model: str = "m") -> ImageIndex:
    files = ImageList([folder])
    return read_index(file, files, build_index(Counting(model), files, file))


def left_beside(file: Path) -> list[str]:
    return sorted(path.name for path in file.parent.iterdir() if path != file)


def test_unchanged_images_are_encoded_once(folder: Path, file: Path) -> None:
    assert index(folder, file).encoded == 3
    again = index(folder, file)
    assert (again.encoded, again.features.tolist(), again.paths) == (0, EXPECTED, ["0.png", "1.png", "2.png"])
    assert index(folder, file, "another model").encoded == 3
    Image.new("RGB", (9, 9), (7, 0, 0)).save(folder / "1.png")
    Image.new("RGB", (8, 8), (5, 0, 0)).save(folder / "00.png")
    (folder / "2.png").unlink()
    changed = index(folder, file, "another model")
    assert (changed.encoded, changed.paths) == (2, ["0.png", "00.png", "1.png"])
    assert changed.features.tolist() == [[0.0, 8.0], [5.0, 8.0], [7.0, 9.0]]
    assert left_beside(file) == []
    with np.load(file) as saved:  # what a user reads
        assert saved["features"].dtype == np.float32
        assert saved["features"].tolist() == changed.features.tolist()
        assert saved["names"].tolist() == changed.paths
    assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0o077 & 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_file(folder: Path, file: Path) -> None:
    for number in range(3, 9):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"no image")
    whole = file.with_name("whole.npz")
    assert build_index(Counting(), ImageList([folder]), whole).encoded == 8
    first = Counting(dies_after=3)
    with pytest.raises(KeyboardInterrupt):
        build_index(first, ImageList([folder]), file)
    assert first.batches == [2, 1, 2]
    assert not file.exists()
    for damaged in ("", "journal", "rows"):  # what a failing machine may cut off
        beside = file.with_name(f"{damaged}.npz")
        for kind in ("journal", "rows"):
            data = file.with_name(f"index.npz.{kind}").read_bytes()
            beside.with_name(f"{beside.name}.{kind}").write_bytes(data[: len(data) - 5 * (damaged == kind)])
        second = Counting()
        report = build_index(second, ImageList([folder]), beside)
        assert second.batches == ([2, 1] if not damaged else [2, 2, 1])
        assert (report.images, len(report.unreadable)) == (8, 1)
        assert "2.png" in report.unreadable[0]
        assert beside.read_bytes() == whole.read_bytes()
    assert left_beside(whole) == [".npz", "index.npz.journal", "index.npz.rows", "journal.npz", "rows.npz"]


def test_a_journal_of_another_model_is_not_gone_on_with(folder: Path, file: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_index(Counting(dies_after=1), ImageList([folder]), file)
    with pytest.raises(ValueError, match=r"journal was begun with other model: delete it"):
        build_index(Counting("other"), ImageList([folder]), file)
    assert build_index(Counting(), ImageList([folder]), file).images == 3


@pytest.mark.parametrize("kept", [0, 1, 20, 45, 100, 300, -1])
def test_an_index_that_was_cut_short_is_built_again(
    folder: Path, file: Path, kept: int, capsys: pytest.CaptureFixture[str]
) -> None:
    index(folder, file)
    file.write_bytes(file.read_bytes()[:kept])
    rebuilt = index(folder, file)
    assert (rebuilt.encoded, rebuilt.features.tolist()) == (3, EXPECTED)
    assert f"{file}: a damaged index" in capsys.readouterr().err
    assert index(folder, file).encoded == 0


def test_flipped_bytes_are_noticed(folder: Path, file: Path) -> None:
    index(folder, file)
    data = bytearray(file.read_bytes())
    for at in range(0, len(data), 13):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        file.write_bytes(damaged)
        if 4 <= at < 30 or at >= 42:
            assert index(folder, file).features.tolist() == EXPECTED, at
        else:  # no longer a file that is surely ours
            with pytest.raises(ValueError, match="no index of images"):
                index(folder, file)


def test_a_failed_write_leaves_the_old_index_and_what_was_computed(
    folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(folder, file)
    before = file.read_bytes()
    Image.new("RGB", (8, 8)).save(folder / "3.png")

    def full(out: Path, *_: object) -> None:
        out.write_bytes(b"PK")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(image_index, "write_features", full)
        with pytest.raises(ValueError, match=r"index.npz: No space left on device; name another file"):
            index(folder, file)
    assert file.read_bytes() == before
    assert left_beside(file) == ["index.npz.journal", "index.npz.rows"]
    assert index(folder, file).encoded == 0
    assert left_beside(file) == []


def test_other_files_are_never_replaced(folder: Path, file: Path) -> None:
    photograph = folder / "0.png"
    before = photograph.read_bytes()
    with pytest.raises(ValueError, match=r"0.png: no index of images"):
        index(folder, photograph)
    assert photograph.read_bytes() == before
    with pytest.raises(ValueError, match="no index of images"):
        index(folder, folder)
    np.savez(folder / "mine.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match="no index of images"):
        index(folder, folder / "mine.npz")


def test_the_cache_is_outside_of_the_folder_and_a_folder_may_be_read_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FIBER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    places = {cache_file(place, model) for place in ("a", "b") for model in ("m", "n")}
    assert len(places) == 4
    assert all(place.parent == tmp_path / "xdg" / "fiber" / "index" for place in places)
    monkeypatch.setenv("FIBER_CACHE", str(tmp_path / "mine"))
    out = cache_file("a", "m")
    assert out.parent == tmp_path / "mine" / "index"
    before = sorted(folder.iterdir())
    folder.chmod(0o555)
    try:
        assert index(folder, out).encoded == 3
    finally:
        folder.chmod(0o755)
    assert sorted(folder.iterdir()) == before


def test_a_folder_without_a_readable_image_leaves_nothing(tmp_path: Path, file: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(3):
        (tmp_path / "a" / f"{number}.png").write_bytes(b"?")
    with pytest.raises(ImageError, match=r"none of 3 images could be read: .*0\.png"):
        index(tmp_path / "a", file)
    assert list(file.parent.iterdir()) == []


def test_images_are_loaded_ahead_in_order_and_no_further() -> None:
    asked: list[int] = []

    def numbers():
        for number in range(50):
            asked.append(number)
            yield number

    def load(number: int) -> int:
        if number % 7 == 3:
            raise ImageError(str(number))
        return -number

    loaded = load_ahead(numbers(), load, ahead=5, workers=3)
    first = [next(loaded) for _ in range(10)]
    assert len(asked) <= 10 + 6
    rest = first + list(loaded)
    assert [item for item, _ in rest] == list(range(50))
    assert [value for item, value in rest if item % 7 != 3] == [-n for n in range(50) if n % 7 != 3]
    assert all(isinstance(value, ImageError) for item, value in rest if item % 7 == 3)
    with pytest.raises(ZeroDivisionError):  # a fault of the program is not taken for one of an image
        list(load_ahead([1, 0], lambda n: 1 // n, ahead=5))
