"""One bad entry costs itself: of COCO's annotations and areas, of labels of labelme, of shares, of files beside."""

import json
from pathlib import Path
from typing import Any

import pytest
from raw_common import put, write_image
from test_own_boxes import H, W, run, voc

from fiber.cli.main import main
from fiber.data.shards import ShardSet

GOOD = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [8, 6, 32, 24]}
BOX = [8, 6, 40, 30]


def coco(folder: Path, annotations: list[Any], name: str = "cup", parent: str = "things") -> Path:
    put(folder / "a.jpg", write_image(0, size=(W, H)))
    categories = [
        {"id": 0, "name": parent, "supercategory": "none"},
        {"id": 1, "name": name, "supercategory": parent},
    ]
    images = [{"id": 0, "file_name": "a.jpg", "width": W, "height": H}]
    put(folder / "boxes.json", {"images": images, "categories": categories, "annotations": annotations})
    return folder


def reasons(out: Path, kept: bool = False) -> list[str]:
    lines = map(json.loads, (out / "drops.jsonl").read_text().splitlines())
    return sorted(line["reason"] for line in lines if line["kept"] == kept)


@pytest.mark.parametrize(
    ("area", "kept"),
    [(0, True), (100.5, True), (768, True), (32.9 * 24.9, True), (900, False), (-5, False), (1e12, False),
     (float("nan"), False), (10**400, False), ("50", False), (True, False), (None, None)],
)  # fmt: skip
def test_an_area_that_cannot_be_the_boxes_is_left_out_and_noted(area, kept, tmp_path):
    """The box is 32 x 24 = 768 pixels, 33 x 25 = 825 with a pixel of rounding."""
    folder = coco(tmp_path / "set", [{**GOOD, "area": area}])
    assert run(folder, tmp_path / "out") == {"train": {"set_a": [("cup", BOX)]}}
    (box,) = ShardSet(tmp_path / "out/train").record(0)["boxes"]
    assert box.get("area") == (area if kept else None)
    noted = ["area not that of the box"] if kept is False else []
    assert reasons(tmp_path / "out/train", kept=True) == noted


def test_bad_annotations_of_coco_are_dropped_one_by_one(tmp_path):
    bad = [None, "x", {"id": 3, "category_id": 1, "bbox": [1, 1, 2, 2]}, {**GOOD, "bbox": [1, 1, 10**400, 2]},
           {**GOOD, "bbox": [1, 1, str(10**400), 2]}]  # fmt: skip
    folder = coco(tmp_path / "set", [bad[0], GOOD, *bad[1:]])
    assert run(folder, tmp_path / "out") == {"train": {"set_a": [("cup", BOX)]}}
    assert reasons(tmp_path / "out/train") == 3 * ["annotation malformed"] + ["box malformed", "box not finite"]


@pytest.mark.parametrize("form", ["voc", "cvat"])
def test_an_image_that_is_listed_twice_is_one_record(form, tmp_path):
    folder = tmp_path / "set"
    put(folder / "JPEGImages/a.jpg", write_image(0, size=(W, H)))
    if form == "voc":
        put(folder / "Annotations/a.xml", voc([(0, BOX)], "a.jpg"))
        put(folder / "ImageSets/Main/train.txt", "a\na\n")
    else:
        box = '<box label="cup" xtl="8" ytl="6" xbr="40" ybr="30"/>'
        image = f'<image name="JPEGImages/a.jpg" width="{W}" height="{H}">{box}</image>'
        put(folder / "annotations.xml", f"<annotations>{image}{image}</annotations>")
    (boxes,) = run(folder, tmp_path / "out")["train"].values()
    assert [box for _, box in boxes] == [BOX]
    assert reasons(tmp_path / "out/train") == ["image id comes again"]


def test_huge_numbers_in_other_formats_are_dropped(tmp_path):
    huge = 10**400
    put(tmp_path / "l/a.jpg", write_image(0, size=(W, H)))
    shapes = [{"label": "cup", "points": points, "shape_type": "rectangle"} for points in
              ([[8, 6], [40, 30]], [[8, 6], [huge, 30]])]  # fmt: skip
    shapes.append({"label": None, "points": [[8, 6], [40, 30]], "shape_type": "rectangle"})
    size = {"imageWidth": huge, "imageHeight": H}
    put(tmp_path / "l/a.json", {"shapes": shapes, "imagePath": "a.jpg", **size})
    assert run(tmp_path / "l", tmp_path / "lout") == {"train": {"l_a": [("cup", BOX)]}}
    assert reasons(tmp_path / "lout/train") == ["shape without area", "unknown category"]
    assert [entry["name"] for entry in ShardSet(tmp_path / "lout/train").categories] == ["cup"]

    put(tmp_path / "o/a.jpg", write_image(0, size=(W, H)))
    instances = [{"bbox": box, "label": 0, "category": "cup"} for box in (BOX, [8, 6, huge, 30])]
    line = {"filename": "a.jpg", "detection": {"instances": instances}}
    put(tmp_path / "o/train.jsonl", json.dumps(line))
    assert run(tmp_path / "o", tmp_path / "oout") == {"train": {"o_a": [("cup", BOX)]}}

    put(tmp_path / "t/a.jpg", write_image(0, size=(W, H)))
    objects = {"bbox": [[8, 6, 32, 24], [8, 6, huge, 24]], "categories": ["cup", "cup"]}
    put(tmp_path / "t/metadata.jsonl", json.dumps({"file_name": "a.jpg", "objects": objects}))
    assert run(tmp_path / "t", tmp_path / "tout") == {"train": {"t_a": [("cup", BOX)]}}


@pytest.mark.parametrize("shares", [["0.125"] * 99 + ["7"], ["0.125", "1.02"], ["40", "1"], ["1", "1", "1", "40"]])
def test_shares_are_told_by_most_boxes(shares, tmp_path):
    """One wrong box of a hundred, or one that ends just outside; a box of one pixel does not make others shares."""
    put(tmp_path / "set/a.jpg", write_image(0, size=(W, H)))
    rows = "".join(f"a.jpg,cup,0,0,{right},1\n" for right in shares)
    put(tmp_path / "set/boxes.csv", "filename,class,xmin,ymin,xmax,ymax\n" + rows)
    boxes = [box for _, box in run(tmp_path / "set", tmp_path / "out")["train"]["set_a"]]
    if shares[0].startswith("0."):
        assert boxes == [[0, 0, 8, H]] * (len(shares) - 1) + [[0, 0, W, H]]
        assert reasons(tmp_path / "out/train", kept=True) == ["box clipped to the image"]
    else:
        assert boxes == [[0, 0, float(right), 1] for right in shares]


OTHERS = {
    "createml": '[{"image": "a.jpg", "annotations": [{"label": "cup"}]}]',
    "broken": '{"images": [ ',
    "no arrays": '{"images": {"a.png": 1}, "categories": [1]}',
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_json_does_not_stop_the_guess(other, tmp_path, capsys):
    folder = tmp_path / "set"
    put(folder / "images/a.jpg", write_image(0, size=(W, H)))
    put(folder / "other.json", other)
    assert main(["shards", "boxes", str(folder), "--out", str(tmp_path / "alone")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "other.json: " in line
    put(folder / "labels/a.txt", "0 .5 .5 .25 .25\n")
    put(folder / "classes.txt", "cup\n")
    assert run(folder, tmp_path / "out") == {"train": {"set_a": [("cup", [24, 18, 40, 30])]}}


def test_a_broken_split_of_coco_is_not_left_out_silently(tmp_path, capsys):
    folder = coco(tmp_path / "set", [GOOD])
    put(folder / "valid/_annotations.coco.json", '{"images": [ ')
    assert main(["shards", "boxes", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "_annotations.coco.json: broken JSON" in capsys.readouterr().err


def test_a_class_called_shapes_is_not_labelmes_key(tmp_path):
    folder = coco(tmp_path / "set", [GOOD], parent="shapes")
    assert run(folder, tmp_path / "out") == {"train": {"set_a": [("cup", BOX)]}}


CORNERS = [[20, 20, 60, 44], [25, 18, 62, 40]]  # of an image of 64 x 48 px
SHARES = [[0.2, 0.2, 0.5, 0.5], [0.1, 0.1, 0.3, 0.3]]


@pytest.mark.parametrize("kind", ["coco", "coco without sizes", "objects", "csv"])
@pytest.mark.parametrize(
    ("boxes", "odd"), [(CORNERS, [50, 30, 50, 40]), (CORNERS, [30, 20, 10, 10]), (SHARES, [9, 9, 9, 9])]
)
def test_a_few_odd_boxes_do_not_hide_the_form_of_the_others(kind, boxes, odd, tmp_path, capsys):
    images, annotations, rows, cells = [], [], [], ["image,class,bbox"]
    for i in range(6):
        put(tmp_path / f"set/{i}.jpg", write_image(i, size=(64, 48)))
        own = boxes + [odd] * (i == 3)
        images.append({"id": i, "file_name": f"{i}.jpg"} | ({"width": 64, "height": 48} if kind == "coco" else {}))
        annotations += [{"image_id": i, "category_id": 1, "bbox": box} for box in own]
        rows.append({"file_name": f"{i}.jpg", "objects": {"bbox": own, "categories": ["cup"] * len(own)}})
        cells += [f'{i}.jpg,cup,"{box}"' for box in own]
    if kind.startswith("coco"):
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cup"}]}
        put(tmp_path / "set/annotations.json", content)
    elif kind == "csv":
        put(tmp_path / "set/boxes.csv", "\n".join(cells) + "\n")
    else:
        put(tmp_path / "set/metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert main(["shards", "boxes", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "of the first 13 boxes" in said
    assert ("these are corners" if boxes is CORNERS else "they are fractions") in said


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[40, 30, 20, 15]] * 4, "24 of 24 boxes have no area: are they [x, y, width, height] where corners"),
        ([[10, 10, 90, 70]] * 3 + [[1, 1, 9, 9]], "18 of 24 boxes leave their image: are they corners where"),
        ([[1, 1, 9, 9]] * 3 + [[60, 40, 70, 60], [9, 9, 9, 20]], ""),
    ],
)
def test_boxes_that_do_not_fit_are_said_at_the_end(boxes, said, tmp_path, capsys):
    """Of a form that cannot be told by its numbers (ODVG has corners)."""
    lines = []
    for i in range(6):
        instances = [{"bbox": box, "label": 0, "category": "cup"} for box in boxes]
        lines.append({"filename": f"{i}.jpg", "detection": {"instances": instances}})
        put(tmp_path / f"set/{i}.jpg", write_image(i, size=(64, 48)))
    put(tmp_path / "set/train.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert main(["shards", "boxes", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert any(said in line for line in warnings) if said else not warnings


def test_one_good_line_of_yolo_does_not_hide_pixels(tmp_path, capsys):
    for i in range(4):
        put(tmp_path / f"set/images/{i}.jpg", write_image(i, size=(64, 48)))
        put(tmp_path / f"set/labels/{i}.txt", "0 30 20 20 10\n" + "0 0.5 0.5 0.2 0.2\n" * (i == 1))
    put(tmp_path / "set/classes.txt", "cup\n")
    assert main(["shards", "boxes", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 1
    assert "4 of 5 boxes of the first labels are larger than the image" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["boxes", "pairs"])
def test_a_folder_is_no_annotation_file(kind, tmp_path, capsys):
    put(tmp_path / "set/labels/a.txt", "0 .5 .5 .2 .2")
    for place in (str(tmp_path / "set/labels"), "labels"):
        command = ["shards", kind, str(tmp_path / "set"), "--annotations", place, "--out", str(tmp_path / "out")]
        assert main(command) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "set/labels: " in line
        assert "--annotations names one" in line


@pytest.mark.parametrize(("word", "good"), [("valid", True), ("Dev", True), ("holdout", False)])
def test_other_words_for_a_split(word, good, tmp_path, capsys):
    for split in ("train", "valid"):
        coco(tmp_path / "set" / split, [GOOD])
    command = ["shards", "boxes", str(tmp_path / "set"), "--split", word, "--out", str(tmp_path / "out")]
    assert main(command) == (0 if good else 1)
    assert not good or ShardSet(tmp_path / "out").info["split"] == "val"
    assert good or f"boxes has no split '{word}'; one of train, val, test" in capsys.readouterr().err
