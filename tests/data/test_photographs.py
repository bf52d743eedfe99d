import io
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fiber.data import photographs as module
from fiber.data.photographs import answers, categories, photographs
from fiber.data.records import LABELS, Sample, validate_record


@pytest.fixture(scope="module")
def samples() -> dict[str, Sample]:
    return {sample.key: sample for sample in photographs()}


def test_records_are_valid_and_complete(samples: dict[str, Sample]) -> None:
    known = {category["id"] for category in categories()}
    assert len(samples) == 8
    for sample in samples.values():
        record = sample.record
        validate_record(record, known)
        for field in ("captions", "boxes", "expressions", "questions"):
            assert record[field], (sample.key, field)
        assert sorted(h["label"] for h in record["hypotheses"]) == sorted(LABELS)
        assert all(q["answers"][0]["answer"] in answers() for q in record["questions"])
        mentioned = {i for caption in record["captions"] for phrase in caption["phrases"] for i in phrase["boxes"]}
        assert mentioned == set(range(len(record["boxes"]))), "a box no caption speaks of"
    ids = [q["id"] for sample in samples.values() for q in sample.record["questions"]]
    assert len(ids) == len(set(ids))


def test_images_come_from_the_installed_package_and_decode(samples: dict[str, Sample]) -> None:
    shipped = {Path(str(file)).name for file in metadata.files("scikit-image") if "skimage/data/" in str(file)}
    for photograph, sample in zip(module.PHOTOGRAPHS, samples.values(), strict=True):
        assert photograph.file in shipped
        ((extension, data),) = sample.images
        assert photograph.file.endswith(extension)
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (sample.record["width"], sample.record["height"])
            image.load()


def test_markup_becomes_spans(samples: dict[str, Sample]) -> None:
    caption = samples["coffee"].record["captions"][0]
    assert caption["text"] == "a red cup of coffee on a red saucer with a small spoon"
    phrases = [caption["text"][start:end] for phrase in caption["phrases"] for start, end in phrase["span"]]
    assert phrases == ["a red cup", "coffee", "a red saucer", "a small spoon"]
    assert [phrase["boxes"] for phrase in caption["phrases"]] == [[0], [3], [1], [2]]
    eyes = samples["chelsea"].record["captions"][0]["phrases"][1]
    assert eyes["boxes"] == [1, 2]
    for sample in samples.values():
        assert not any(set("[]()") & set(caption["text"]) for caption in sample.record["captions"])


def test_each_coin_fills_its_box(samples: dict[str, Sample]) -> None:
    """Coins are brighter than the ground around them: every box holds one bright blob that reaches its borders."""
    record = samples["coins"].record
    pixels = np.asarray(Image.open(io.BytesIO(samples["coins"].images[0][1]))).astype(float)
    assert len(record["boxes"]) == 24
    ground = ndimage.percentile_filter(pixels, 20, size=65)
    blobs, _ = ndimage.label(ndimage.binary_fill_holes(ndimage.gaussian_filter(pixels, 1) > ground + 25))
    for entry in record["boxes"]:
        x0, y0, x1, y1 = map(int, entry["box"])
        names, sizes = np.unique(blobs[y0:y1, x0:x1][blobs[y0:y1, x0:x1] > 0], return_counts=True)
        rows, columns = np.nonzero(blobs == names[sizes.argmax()])
        blob = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        overlap = np.minimum(blob[2:], (x1, y1)) - np.maximum(blob[:2], (x0, y0))
        union = (x1 - x0) * (y1 - y0) + np.prod(blob[2:] - blob[:2]) - np.prod(overlap)
        assert np.prod(overlap) / union > 0.75, entry


def test_missing_package_or_file_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "skimage", None)
        with pytest.raises(ImportError, match=r"pip install -e '\.\[test\]'"):
            next(photographs())
    monkeypatch.setattr(module, "_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"astronaut\.png.*install scikit-image"):
        next(photographs())
