"""Sets as people bring them: every input of shared/cases/own_data gives what its README calls right."""

import csv
import io
import json
import os
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from fiber.cli.inspect import verify
from fiber.data.convert.image_folder import ImageFolder
from fiber.data.convert.masks import mask_box
from fiber.data.convert.packing import turned_box
from fiber.data.convert.verdict import warnings
from fiber.data.shards import ShardSet
from fiber.images.codec import ORIENTATION, decode

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parents[3] / "tools")]
import raw

import make_shards

BOXES = ["--annotations", "annotations.json"]

REFUSED = {
    "bbox_normalised": r"annotations\.json: 3 of the first 3 boxes .* fractions .* multiply x and width by",
    "categories_of_strings": r"annotations\.json: category 'coffee cup' must be an object like",
    "category_ids_mixed_types": r"annotations\.json: category ids are texts and numbers: \[1, '2'\]",
    "category_name_empty": r"annotations\.json: the name of category 2 is blank",
    "category_name_missing": r"annotations\.json: category \{'id': 2\} must have an id and a name",
    "category_without_id": r"annotations\.json: category \{'name': 'red block'\} must have an id",
    "json_latin1": r"annotations\.json: broken JSON at byte 557: not UTF-8 \(perhaps Latin-1 or GBK\): save it",
    "json_lines": r"annotations\.json: has no array 'categories'; it looks like JSON lines",
    "repeated_image_id": r"annotations\.json: image id 1 comes twice",
    "pairs_gz": r"00000\.tar: a tar compressed by gzip",
}

# samples, boxes (or captions), reasons of what was left out, reasons of what was noted, a warning
MADE = {
    "all_crowd": (3, 3, {}, {}, "every box is a crowd region"),
    "annotations_empty": (3, 0, {}, {}, "no image has a box"),
    "backslash_file_name": (3, 3, {}, {}, ""),
    "backslash_up_file_name": (3, 3, {}, {}, ""),
    "bbox_empty": (3, 2, {"box malformed": 1}, {}, ""),
    "bbox_missing_polygon": (3, 3, {}, {}, ""),
    "bbox_missing_rle": (3, 3, {}, {"area not that of the box": 1}, ""),
    "bbox_null": (3, 2, {"box malformed": 1}, {}, ""),
    "bbox_strings": (3, 3, {}, {}, ""),
    "cvat_layout": (3, 3, {}, {}, ""),
    "duplicate_category_names": (3, 3, {}, {}, r"'cup' \(id 1\) and 'cup' \(id 2\)"),
    "exif_png_webp": (2, 2, {"size mismatch": 2}, {"image with an EXIF turn": 4}, ""),
    "exif_stored_jpeg": (1, 1, {"size mismatch": 1}, {"image with an EXIF turn": 2}, ""),
    "extension_case": (3, 3, {}, {}, ""),
    "jpeg_damage": (2, 2, {"broken image": 2}, {"end mark added": 1}, ""),
    "json_null_arrays": (3, 0, {}, {}, "no image has a box"),
    "names_equal_after_cleaning": (3, 3, {}, {}, r"'bat \(animal\)' \(id 1\) and 'bat \(sports\)'"),
    "no_extension": (3, 3, {}, {}, ""),
    "one_bad_of_many": (12, 11, {"box malformed": 1}, {}, ""),
    "repeated_file_name": (1, 1, {"file listed more than once": 2}, {}, ""),
    "same_name_subfolders": (3, 3, {}, {}, ""),
    "size_zero": (3, 3, {}, {"size not given": 1}, ""),
    "string_image_ids": (3, 3, {}, {}, ""),
    "own_captions": (3, 3, {}, {}, ""),
    "pairs_csv": (1, 1, {}, {}, ""),
    "pairs_dots": (1, 1, {"second image of a key": 2}, {}, ""),
    "pairs_duplicate_key": (2, 2, {"second image of a key": 1}, {}, ""),
    "pairs_folders": (6, 6, {}, {}, ""),
    "pairs_json_not_object": (6, 6, {}, {}, ""),  # the .txt beside it has the caption: nothing is lost
    "pairs_named": (6, 6, {}, {}, ""),
    "pairs_not_adjacent": (3, 3, {}, {}, ""),
    "pairs_plain_pairs": (6, 6, {}, {}, ""),
    "pairs_txt_only": (6, 6, {}, {}, ""),
}  # fmt: skip


def command(folder: Path, out: Path) -> list[str]:
    name = folder.name
    if name.startswith("pairs_") or name == "own_captions":
        named = {"pairs_csv": "pairs.csv", "own_captions": "captions.json"}.get(name)
        return ["pairs", "--raw", str(folder), "--out", str(out), *(["--annotations", named] if named else [])]
    where = ["--annotations", "annotations/instances_default.json"] if name == "cvat_layout" else BOXES
    return ["odinw", "--raw", str(folder), "--out", str(out), *where]


def run(arguments: list[str], capsys) -> tuple[dict, str]:
    """(summary, what was said)."""
    assert make_shards.main(arguments) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    return json.loads(said.out.splitlines()[-1]), said.out + said.err


def test_every_case_has_its_test(shared):
    folders = {path.name for path in (shared / "cases/own_data").iterdir()}
    assert folders == {*REFUSED, *MADE, "detect_dots"}  # the last: tests/predict/test_phrases.py


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_that_says_what_to_do(name, shared, tmp_path, capsys):
    assert make_shards.main(command(shared / "cases/own_data" / name, tmp_path / "out")) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert re.search(REFUSED[name], lines[0])


@pytest.mark.parametrize("name", MADE)
def test_made_and_counted(name, shared, tmp_path, capsys):
    samples, annotations, dropped, noted, warning = MADE[name]
    folder = shared / "cases/own_data" / name
    summary, said = run(command(folder, tmp_path / "out"), capsys)
    assert summary["samples"] == samples
    assert {reason: found["count"] for reason, found in summary["dropped"].items()} == dropped
    assert {reason: found["count"] for reason, found in summary["noted"].items()} == noted
    if "boxes" in summary:
        assert summary["boxes"]["boxes"] == annotations
        assert f"  {annotations} boxes in " in said
        assert summary["boxes"]["images_without"] == samples - min(samples, annotations)
        assert sum(summary["boxes"]["per_class"].values()) == annotations
    else:
        assert summary["annotations"] == {"captions": annotations}
    assert ("warning: " in said) == bool(warning)
    assert re.search(warning, said)

    shards = ShardSet(tmp_path / "out")
    ids = [shards.record(i)["image_id"] for i in range(samples)]
    assert len(set(ids)) == samples
    assert verify(shards) == {}


def boxes_of(folder: Path, out: Path, capsys, *options: str) -> dict[str, list[list[float]]]:
    run([*command(folder, out), *options], capsys)
    shards = ShardSet(out)
    return {r["image_id"]: [b["box"] for b in r["boxes"]] for r in map(shards.record, range(len(shards)))}


def test_boxes_are_those_of_the_file(shared, tmp_path, capsys):
    """Texts of numbers are numbers; a polygon and a mask have the box that pycocotools gives them."""
    cases = shared / "cases/own_data"
    assert boxes_of(cases / "bbox_strings", tmp_path / "a", capsys)["bbox_strings_001"] == [[4, 6, 24, 22]]
    for name in ("bbox_missing_polygon", "bbox_missing_rle"):
        content = json.loads((cases / name / "annotations.json").read_text())
        entry = next(entry for entry in content["annotations"] if "bbox" not in entry)
        size = content["images"][0]["height"], content["images"][0]["width"]
        outline = entry["segmentation"]
        if isinstance(outline, list):
            points = np.array(outline).reshape(-1, 2)
            expected = [*points.min(0), *points.max(0)]
        else:
            packed = coco_mask.frPyObjects(outline, *size) if isinstance(outline["counts"], list) else outline
            x, y, width, height = coco_mask.toBbox(packed).tolist()
            expected = [x, y, x + width, y + height]
        stems = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
        found = boxes_of(cases / name, tmp_path / name, capsys)
        assert found[f"{name}_{stems[entry['image_id']]}"] == [expected]


def test_masks_equal_pycocotools():
    rng = np.random.default_rng(0)
    for trial in range(60):
        height, width = rng.integers(1, 40, 2)
        mask = (rng.random((height, width)) < rng.choice([0.02, 0.5])).astype(np.uint8)
        if trial % 3 == 0:
            mask = np.zeros_like(mask)
            mask[: rng.integers(0, height + 1), : rng.integers(0, width + 1)] = 1
        packed = coco_mask.encode(np.asfortranarray(mask))
        expected = coco_mask.toBbox(packed).tolist() if mask.any() else None
        flat = mask.T.ravel()
        changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
        runs = np.diff(np.concatenate([[0], changes])).tolist()
        assert mask_box({"size": packed["size"], "counts": packed["counts"].decode()}) == expected
        assert mask_box({"size": packed["size"], "counts": runs}) == expected
    for nonsense in (None, [], [[]], [[1, 2, 3]], "x", {"size": [3]}, {"size": [3, 3], "counts": "\x00"},
                     {"size": [3, 3], "counts": [1, 99]}, {"size": [1e9, 1e9], "counts": [1]}, [["a"]]):  # fmt: skip
        assert mask_box(nonsense) is None


@pytest.mark.parametrize("turn", range(2, 9))
def test_stored_boxes_turn_with_the_image(turn):
    """The box of a white patch, found in the pixels that Pillow turns."""
    pixels = np.zeros((30, 50, 3), np.uint8)
    pixels[4:10, 20:45] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))[..., 0]
    rows, columns = np.nonzero(shown)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert turned_box([20, 4, 45, 10], turn, 50, 30) == expected


def test_sets_annotated_as_stored_can_be_read_so(shared, tmp_path, capsys):
    """In the case, box 1 is a patch of its own colour: it must lie there in the pixels that are learned from."""
    folder = shared / "cases/own_data/exif_stored_jpeg"
    assert len(boxes_of(folder, tmp_path / "out", capsys, "--stored-boxes")) == 2
    shards = ShardSet(tmp_path / "out")
    for i in range(2):
        sample = shards.read(i)
        image = decode(sample.images[0][1]).astype(int)
        x0, y0, x1, y1 = (round(side) for side in sample.record["boxes"][0]["box"])
        inside = image[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].reshape(-1, 3)
        assert inside.std(0).max() < 8
        assert np.abs(inside.mean(0) - image[:3].reshape(-1, 3).mean(0)).max() > 30


def corners(folder: Path, form: str, number: int = 6) -> list[str]:
    """A set whose boxes are written in some form; the arguments that convert it."""
    images, annotations = [], []
    for i in range(number):
        images.append({"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48})
        box = [20 + i, 20, 60, 44] if form == "corners" else [1 + i, 2, 30, 60 if i == 0 else 20]
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": box})
        raw.put(folder / f"{i}.jpg", raw.write_image(i, size=(64, 48)))
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    raw.put(folder / "annotations.json", content)
    return ["odinw", "--raw", str(folder), *BOXES]


def test_corner_boxes_are_recognised_and_a_box_over_the_edge_is_not_one(tmp_path, capsys):
    arguments = corners(tmp_path / "corners", "corners")
    assert make_shards.main([*arguments, "--out", str(tmp_path / "a")]) == 1
    assert "these are corners; write [x0, y0, x1 - x0, y1 - y0]" in capsys.readouterr().err
    summary, _ = run([*corners(tmp_path / "boxes", "boxes"), "--out", str(tmp_path / "b")], capsys)
    assert summary["noted"]["box clipped to the image"]["count"] == 1


@pytest.mark.parametrize(
    ("on_disk", "written"),
    [
        ("train/a 1.jpg", "train/a%201.jpg"),
        ("a.jpg", "C:\\Users\\me\\images\\A.JPG"),
        ("a.jpg", "/data/local-files/?d=images/a.jpg"),
        ("a.jpg", "https://host/upload/4/a.jpg?token=1"),
        ("a.jpeg", "a.jpg"),
        ("a.png", "a"),
        ("a.b.jpg", "a.b"),
        (unicodedata.normalize("NFD", "é木.jpg"), unicodedata.normalize("NFC", "é木.jpg")),
        ("x/y/a.jpg", "z/y/a.jpg"),
        ("100%.jpg", "100%.jpg"),
    ],
)
def test_a_name_finds_its_file(on_disk, written, tmp_path):
    raw.put(tmp_path / on_disk, b"1")
    raw.put(tmp_path / "other.jpg", b"2")
    raw.put(tmp_path / "notes.txt", b"3")
    assert ImageFolder([tmp_path, tmp_path / "images"]).find(written).read() == b"1"


def test_a_name_of_two_files_finds_none_of_them(tmp_path):
    for name in ("cam1/001.jpg", "cam2/001.jpg", "cam3/002.jpg"):
        raw.put(tmp_path / name, name.encode())
    folder = ImageFolder([tmp_path])
    assert not os.path.exists(folder.find("001.jpg").paths[0])
    assert folder.find("x/cam2/001.jpg").read() == b"cam2/001.jpg"
    assert folder.find("002.jpg").read() == b"cam3/002.jpg"
    assert not os.path.exists(folder.find("cam9/002.jpg", unique=False).paths[0])  # two images ask for a 002.jpg
    assert not os.path.exists(folder.find("a\0b.jpg", unique=False).paths[0] if folder.find("a\0b").paths else "")


PAIRS = {
    "t.tsv": "image\tcaption\na.jpg\tone\na.jpg\ttwo\nb.jpg\tthree\n",
    "t.csv": 'title,filepath\n"one, with a comma",a.jpg\nthree,b.jpg\nbad,row,here\n',
    "t.jsonl": '{"image": "a.jpg", "text": "one"}\n{"image": "b.jpg", "caption": ["two", "three"]}\nnot json\n[1]\n',
    "list.json": [{"image": "a.jpg", "caption": "one"}, {"image": "b.jpg", "caption": ["two", "three"]}, 7],
    "karpathy.json": {"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "one"}]},
                                 {"filename": "b.jpg", "split": "test", "sentences": [{"raw": "no"}]}]},
}  # fmt: skip
TEXTS = {"t.tsv": [["one", "two"], ["three"]], "t.csv": [["one, with a comma"], ["three"]],
         "t.jsonl": [["one"], ["two", "three"]], "list.json": [["one"], ["two", "three"]],
         "karpathy.json": [["one"]]}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_in_every_form(name, tmp_path, capsys):
    content = PAIRS[name]
    raw.put(tmp_path / "set" / name, content.encode() if isinstance(content, str) else content)
    for i, image in enumerate("ab"):
        raw.put(tmp_path / "set" / "images" / f"{image}.jpg", raw.write_image(i))
    arguments = ["pairs", "--raw", str(tmp_path / "set"), "--annotations", name, "--out", str(tmp_path / "out")]
    summary, _ = run(arguments, capsys)
    shards = ShardSet(tmp_path / "out")
    found = [[c["text"] for c in shards.record(i)["captions"]] for i in range(len(shards))]
    assert found == TEXTS[name]
    left_out = {"t.csv": 1, "t.jsonl": 2, "list.json": 1}.get(name, 0)
    assert sum(reason["count"] for reason in summary["dropped"].values()) == left_out


def test_wrong_tables_say_what_is_expected(tmp_path, capsys):
    for name, content, expected in (
        ("a.csv", b"x,y\n1,2\n", "must have a column of images"),
        ("b.csv", b"", "must have a column of images"),
        ("c.txt", b"x", "must have a column of images"),
        ("c.doc", b"x", "texts come from a .csv"),
        (
            "d.csv",
            "filepath,title\na.jpg,caf\xe9\n".encode("latin-1"),
            "not UTF-8 (perhaps Latin-1 or GBK)",
        ),
        ("e.tsv", f"filepath\ttitle\na.jpg\t{'x' * (csv.field_size_limit() + 1)}\n".encode(), "not a table"),
        ("f.json", b"7", "expected a JSON object"),
    ):
        raw.put(tmp_path / name, content)
        assert make_shards.main(["pairs", "--raw", str(tmp_path), "--annotations", name, "--out", "x"]) == 1
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "prompts", "said"), [("cup [red]", False, 1), ("cup [red]", True, 0), ("cup", False, 0)]
)
def test_brackets_in_a_class_name_are_said(name, prompts, said):
    """They have a meaning, which one's own set may not intend."""
    found = warnings({}, [{"id": 1, "name": name}], prompts)
    assert [message.endswith("stand for the class: 'cup [red]'") for message in found] == [True] * said
