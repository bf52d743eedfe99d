"""From item to sample: boxes and spans by hand, every reason to drop."""

import math
import re

import pytest
import raw

from fiber.data.convert import packing
from fiber.data.convert.engine import ConversionOptions, convert
from fiber.data.convert.items import ConversionError, Drop, RawDataset, RawImage, RawItem
from fiber.data.convert.packing import Packing, _move_spans, _same_shape, pack
from fiber.data.records import clean_text, validate_record
from fiber.data.remote import SHARD_NAME
from fiber.images import codec
from fiber.images.codec import decode


@pytest.fixture
def image(tmp_path):
    return RawImage((str(raw.put(tmp_path / "a.jpg", raw.write_image(0))),))  # 64 x 48


def packed(record, image, **more):
    item = RawItem({"image_id": "x", "source": "test", **record}, (image,), **more)
    sample, drops = pack(item, "key", Packing(), None)
    if sample is not None:
        validate_record(sample.record)
    return sample, [(drop.reason, drop.kept) for drop in drops]


def test_boxes_are_clipped_dropped_and_renumbered(image):
    boxes = [
        [0, 0, 0, 9],
        [10, 10, 20, 20],
        [-30, 5, -2, 9],
        [60, 40, 90, 90],
        [5, 5, math.nan, 9],
        [-0.5, -0.5, 64.5, 48.5],
    ]
    record = {
        "boxes": [{"box": box} for box in boxes],
        "captions": [{"text": "two things", "phrases": [{"span": [[0, 3]], "boxes": [0, 1, 3]},
                                                        {"span": [[4, 10]], "boxes": [2]}]}],
        "expressions": [{"text": "kept", "box": 3}, {"text": "gone", "box": 2}],
    }  # fmt: skip
    sample, drops = packed(record, image)
    # Half a pixel over the border is rounding and stays; more is clipped.
    assert [b["box"] for b in sample.record["boxes"]] == [
        [10, 10, 20, 20],
        [60, 40, 64, 48],
        [-0.5, -0.5, 64.5, 48.5],
    ]
    assert [p["boxes"] for p in sample.record["captions"][0]["phrases"]] == [[0, 1], []]
    assert sample.record["expressions"] == [{"text": "kept", "box": 1}]
    assert sorted(drops) == sorted([
        ("box without area", False), ("box outside the image", False), ("box clipped to the image", True),
        ("box not finite", False), ("expression without a box", False),
    ])  # fmt: skip


def test_boxes_follow_a_resized_image(image):
    sample, _ = packed({"boxes": [{"box": [64, 48, 640, 480], "area": 200.0}]}, image, size=(640, 480))
    assert sample.record["boxes"] == [{"box": pytest.approx([6.4, 4.8, 64, 48]), "area": 2.0}]


@pytest.mark.parametrize(
    ("annotated", "actual", "same"),
    [((640, 480), (640, 480), True), ((640, 427), (500, 334), True), ((640, 427), (500, 333), True),
     ((500, 334), (640, 427), True), ((480, 640), (640, 480), False), ((640, 480), (640, 470), False),
     ((0, 0), (5, 5), False)],
)  # fmt: skip
def test_same_shape(annotated, actual, same):
    assert _same_shape(annotated, actual) is same


def test_another_shape_is_dropped(image):
    assert packed({"boxes": [{"box": [1, 1, 5, 5]}]}, image, size=(48, 64)) == (None, [("size mismatch", False)])
    sample, _ = packed({"captions": [{"text": "no box, no harm"}]}, image, size=(48, 64))
    assert sample is not None


@pytest.mark.parametrize("text", ["  A  man\ton a\n moped. ", "plain", " x", "a  b", "\u00a0wide\u2003blank "])
def test_spans_move_with_the_white_space(text):
    clean = clean_text(text)
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            words = clean_text(text[start:end])
            if not words or text[start].isspace() or text[end - 1].isspace():
                continue
            ((s, e),) = _move_spans({"span": [[start, end]]}, text)["span"]
            assert clean[s:e] == words


def test_texts(image):
    record = {"captions": [{"text": " A  man "}, {"text": " \n"}, {"text": None}]}
    sample, drops = packed(record, image)
    assert sample.record["captions"] == [{"text": "A man"}]
    assert drops == [("empty text", False)] * 2
    assert packed({"captions": [{"text": ""}]}, image)[1][-1] == ("no annotations left", False)


def test_images_without_annotations_can_be_kept(image):
    assert packed({}, image)[0] is not None  # a captioning test set
    assert "boxes" not in packed({"captions": [{"text": "x"}], "boxes": []}, image)[0].record
    item = RawItem({"image_id": "x", "source": "t", "boxes": []}, (image,))
    assert pack(item, "key", Packing(), {1})[0].record["boxes"] == []  # looked at, nothing found: a detection set


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty file"), (b"<!DOCTYPE html>", "not an image"), (b"\0\1\2\3", "not an image"),
     (raw.write_image(0, "GIF"), "unsupported format"), (raw.write_image(0, raw.TRUNCATED), "broken image"),
     (raw.write_image(0, "PNG")[:-30], "broken image"), (raw.write_image(0, "WEBP")[:-90], "broken image"),
     (b"\xff\xd8\xff\xe0rest", "broken image")],
)  # fmt: skip
def test_what_is_no_image(data, reason, tmp_path):
    image = RawImage((str(raw.put(tmp_path / "a.jpg", data)),))
    assert packed({"captions": [{"text": "x"}]}, image) == (None, [(reason, False)])


@pytest.mark.parametrize(
    ("kind", "mode", "extension"),
    [
        ("JPEG", "L", "jpg"),
        ("JPEG", "CMYK", "jpg"),
        ("PNG", "RGBA", "png"),
        ("PNG", "P", "png"),
        ("WEBP", "RGB", "webp"),
    ],
)
def test_formats_are_told_by_their_bytes(kind, mode, extension, tmp_path):
    data = raw.write_image(0, kind, mode)
    image = RawImage((str(raw.put(tmp_path / "misnamed.gif", data)),))
    sample, drops = packed({"captions": [{"text": "x"}]}, image)
    assert sample.images == [(extension, data)]
    assert (sample.record["width"], sample.record["height"], drops) == (64, 48, [])


def test_places(tmp_path):
    data = raw.write_image(0)
    inside = raw.put(tmp_path / "big.bin", b"x" * 100 + data + b"y" * 50)
    record = {"captions": [{"text": "x"}]}
    assert packed(record, RawImage((str(inside),), 100, len(data)))[0].images == [("jpg", data)]
    absent = RawImage((str(tmp_path / "no"), str(tmp_path)))
    assert packed(record, absent) == (None, [("missing image", False)])
    item = RawItem({"image_id": "x", "source": "t"}, (absent,), drops=(Drop("before", "x"),))
    assert [drop.detail for drop in pack(item, "k", Packing(), None)[1]] == ["", str(tmp_path / "no")]


def test_huge_images_are_refused_by_their_header(tmp_path):
    data = bytearray(raw.write_image(0, "PNG"))
    data[16:24] = (20_000).to_bytes(4, "big") * 2  # the header says 400 million pixels
    image = RawImage((str(raw.put(tmp_path / "a.png", bytes(data))),))
    assert packed({"captions": [{"text": "x"}]}, image) == (None, [("image too large", False)])


def test_a_jpeg_of_too_many_pixels_is_shrunk_where_that_is_asked(tmp_path, monkeypatch):
    for module in (codec, packing):
        monkeypatch.setattr(module, "MAX_PIXELS", 2000)
    image = RawImage((str(raw.put(tmp_path / "a.jpg", raw.write_image(0, size=(64, 48)))),))
    item = RawItem({"image_id": "a", "source": "t", "boxes": [{"box": [8, 8, 40, 24], "category": 1}]}, (image,))
    assert pack(item, "k", Packing(), {1})[1][0].detail == (
        "64 x 48 pixels, more than 0 megapixels; make it smaller first, a JPEG by --max-side"
    )
    sample, _ = pack(item, "k", Packing(max_side=16), {1})
    assert (sample.record["width"], sample.record["height"]) == (16, 12)
    assert sample.record["boxes"][0]["box"] == [2, 2, 10, 6]
    assert decode(sample.images[0][1]).shape == (12, 16, 3)
    assert pack(item, "k", Packing(max_side=48), {1})[0] is None  # it would have to be decoded whole


def test_a_folder_with_any_name_gives_shards_that_can_be_opened():
    """A converter takes the name of the user's folder; a name with blanks made sets that nothing could read."""
    dataset = RawDataset("my photos (2024)", "train", "CC0", {}, [])
    assert SHARD_NAME.fullmatch(f"{dataset.name}-000000.tar")
    assert dataset.name == "my_photos_2024_"


@pytest.mark.parametrize(
    ("provenance", "named"),
    [
        ({"file": "a.json"}, "a.json"),
        ({"files": ["a.json", "b.json"]}, "a.json, b.json"),
        ({"files": "Annotations/*.xml"}, "Annotations/*.xml"),
        ({}, "mine"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_named(provenance, named, tmp_path):
    def items():
        yield Drop("no caption", "7", "")
        raise ValueError("x")

    source = RawDataset("mine", "train", "CC0", provenance, items())
    with pytest.raises(ConversionError, match=re.escape(f"{named}: what follows 7 is not in the format of mine: x")):
        convert(source, ConversionOptions(tmp_path / "out"))
