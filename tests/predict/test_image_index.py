"""The index of a folder's images survives kills, and replaces nothing that is not an index."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fiber.predict.image_index import INDEX_FILE, ImageIndex, build_index
from fiber.predict.sources import ImageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def index(folder: Path, file: Path, model: str = "m") -> ImageIndex:
    """With the number of an image as its feature."""
    return build_index(folder, file, model, lambda path: torch.tensor([float(path.stem)]))


def test_unchanged_images_are_encoded_once(folder: Path) -> None:
    file = folder / INDEX_FILE
    assert index(folder, file).encoded == 3
    again = index(folder, file)
    assert (again.encoded, again.features.tolist()) == (0, [[0.0], [1.0], [2.0]])
    assert index(folder, file, "another model").encoded == 3
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize("kept", [0, 1, 20, 45, 100, 300, -1])
def test_an_index_that_was_cut_short_is_built_again(
    folder: Path, kept: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / INDEX_FILE
    index(folder, file)
    file.write_bytes(file.read_bytes()[:kept])
    rebuilt = index(folder, file)
    assert (rebuilt.encoded, rebuilt.features.tolist()) == (3, [[0.0], [1.0], [2.0]])
    assert f"{file}: a damaged index" in capsys.readouterr().err
    assert index(folder, file).encoded == 0


def test_flipped_bytes_are_noticed(folder: Path) -> None:
    file = folder / INDEX_FILE
    index(folder, file)
    data = bytearray(file.read_bytes())
    for at in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        file.write_bytes(damaged)
        if 4 <= at < 30 or at >= 42:
            assert index(folder, file).features.tolist() == [[0.0], [1.0], [2.0]], at
        else:  # no longer a file that is surely ours
            with pytest.raises(ImageError, match="no index of images"):
                index(folder, file)


def test_a_failed_write_leaves_the_old_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / INDEX_FILE
    index(folder, file)
    before = file.read_bytes()
    Image.new("RGB", (8, 8)).save(folder / "3.png")

    def full(out, **arrays: object) -> None:
        out.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(ImageError, match=f"{INDEX_FILE}: No space left on device; name another file with --index"):
        index(folder, file)
    assert file.read_bytes() == before
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


def test_other_files_are_never_replaced(folder: Path) -> None:
    photograph = folder / "0.png"
    before = photograph.read_bytes()
    with pytest.raises(ImageError, match=r"0.png: no index of images"):
        index(folder, photograph)
    assert photograph.read_bytes() == before
    with pytest.raises(ImageError, match="no index of images"):
        index(folder, folder)
    np.savez(folder / "mine.npz", weights=np.zeros(3))
    with pytest.raises(ImageError, match="no index of images"):
        index(folder, folder / "mine.npz")
