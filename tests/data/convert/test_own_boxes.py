"""Own boxes in every format: the same set written as COCO, VOC, YOLO, labelme and ODVG is the same set."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from raw_common import put, write_image

from fiber.cli.main import main
from fiber.data.convert import pieces
from fiber.data.convert.boxes_yolo import share_box
from fiber.data.convert.items import ConversionError
from fiber.data.convert.splits import split_of
from fiber.data.convert.val_share import divide
from fiber.data.shards import ShardSet

W, H = 64, 48
NAMES = ["cup", "red block"]
BOXES: dict[str, list[tuple[int, list[float]]]] = {
    "a": [(0, [8, 6, 40, 30]), (1, [16, 12, 32, 24])],
    "b": [],
    "c": [(1, [0, 0, 64, 48])],
}
"""Image -> (class, box in pixels): every corner is a multiple of a 64th, so shares are exact."""


def run(folder: Path, out: Path, *options: str) -> dict[str, Any]:
    """split -> {image_id: [(class name, box)]} of the sets that come out."""
    assert main(["shards", "boxes", str(folder), "--out", str(out), *options]) == 0
    found = {}
    for path in sorted(path for path in out.iterdir() if path.is_dir()):
        shards = ShardSet(path)
        assert shards.info["split"] == path.name
        names = {category["id"]: category["name"] for category in shards.categories}
        records = [shards.record(i) for i in range(len(shards))]
        found[path.name] = {r["image_id"]: [(names[b["category"]], b["box"]) for b in r["boxes"]] for r in records}
    return found


def expected(name: str, images: str = "abc") -> dict[str, list]:
    return {f"{name}_{image}": [(NAMES[c], box) for c, box in BOXES[image]] for image in images}


def shares(c: int, box: list[float]) -> str:
    x0, y0, x1, y1 = box
    return f"{c} {(x0 + x1) / 2 / W} {(y0 + y1) / 2 / H} {(x1 - x0) / W} {(y1 - y0) / H}\n"


def yolo(folder: Path, images: str, labels: str, names: str = "abc") -> None:
    for number, image in enumerate(names):
        put(folder / images / f"{image}.jpg", write_image(number, size=(W, H)))
        if BOXES[image]:  # no file where there is no object, as Ultralytics has it
            put(folder / labels / f"{image}.txt", "".join(shares(*entry) for entry in BOXES[image]))


YAML_DICT = (
    "path: ../datasets/elsewhere\ntrain: images/train2017\nval: images/val2017\nnames:\n  0: cup\n  1: red block\n"
)
YAML_LIST = "train: ../train/images\nval: ../valid/images\ntest:\nnc: 2\nnames: ['cup', 'red block']\n"


@pytest.mark.parametrize("layout", ["ultralytics", "roboflow", "lists", "beside", "folders", "polygons"])
def test_yolo_in_every_layout(layout, tmp_path):
    folder = tmp_path / "mine"
    train, val = expected("mine", "ab"), expected("mine", "c")
    if layout in ("ultralytics", "polygons"):
        yolo(folder, "images/train2017", "labels/train2017", "ab")
        yolo(folder, "images/val2017", "labels/val2017", "c")
        put(folder / "data.yaml", YAML_DICT)
        if layout == "polygons":  # the outline of the first box, and a star inside of it
            put(folder / "labels/train2017/a.txt", "0 0.125 0.125 0.625 0.125 0.625 0.625 0.125 0.625 0.3 0.3\n"
                + shares(*BOXES["a"][1]))  # fmt: skip
    elif layout == "roboflow":
        yolo(folder, "train/images", "train/labels", "ab")
        yolo(folder, "valid/images", "valid/labels", "c")
        put(folder / "data.yaml", YAML_LIST)
    elif layout == "lists":
        yolo(folder, "images", "labels")
        put(folder / "data.yaml", "path: .\ntrain: [train.txt]\nval: val.txt\nnames: [cup, red block]\n")
        put(folder / "train.txt", "./images/a.jpg\n/home/me/set/images/b.jpg\n")
        put(folder / "val.txt", "images/c.jpg\n")
    elif layout == "folders":
        yolo(folder, "images/train", "labels/train", "ab")
        yolo(folder, "images/valid", "labels/valid", "c")
        put(folder / "classes.txt", "cup\nred block\n")
    else:
        yolo(folder, "obj", "obj")
        (folder / "obj").rename(folder / "obj_train_data")
        put(folder / "obj.names", "cup\nred block\n")
        train, val = expected("mine"), {}
    assert run(folder, tmp_path / "out") == {"train": train, **({"val": val} if val else {})}


def test_a_split_that_roboflow_names_but_never_wrote_is_left_out_and_said(tmp_path, capsys):
    yolo(tmp_path / "set", "train/images", "train/labels")
    put(tmp_path / "set/data.yaml", YAML_LIST.replace("test:", "test: ../test/images"))
    assert run(tmp_path / "set", tmp_path / "out") == {"train": expected("set")}
    said = capsys.readouterr()
    for split in ("val", "test"):
        assert f"{split}: named by the YAML file, but not there: left out" in said.out + said.err
    assert set(run(tmp_path / "set", tmp_path / "divided", "--val-share", "0.4")) == {"train", "val"}
    assert main(["shards", "boxes", str(tmp_path / "set"), "--split", "test", "--out", str(tmp_path / "t")]) == 1
    assert "YOLO without a split 'test'; it has train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "keypoints", "box"),
    [
        ("3 .5 .5 .2 .4", False, [0.5, 0.5, 0.2, 0.4]),
        ("3 .5 .5 .2 .4 .9", False, [0.5, 0.5, 0.2, 0.4]),  # a score
        ("0 .1 .2 .5 .2 .5 .6", False, [0.3, 0.4, 0.4, 0.4]),  # a triangle
        ("0 .5 .5 .2 .4 .1 .1 2 .3 .3 2", True, [0.5, 0.5, 0.2, 0.4]),
        *((line, False, None) for line in ("cup .5 .5 .2 .4", "0 .5 .5 .2", "0 nan .5 .2 .4", "0 0 0 1 1 1 0 1")),
    ],
)
def test_lines_of_yolo(line, keypoints, box):
    assert share_box(line.split(), keypoints) == (box and pytest.approx(box))


def voc(objects: list[tuple[int, list[float]]], filename: str) -> str:
    boxes = "".join(
        f"<object><name>{NAMES[c]}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>" for c, (x0, y0, x1, y1) in objects
    )  # fmt: skip
    size = f"<size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{size}{boxes}</annotation>"


@pytest.mark.parametrize("layout", ["published", "beside", "roboflow"])
def test_voc_in_every_layout(layout, tmp_path):
    folder = tmp_path / "mine"
    inner = {"published": "JPEGImages", "beside": "", "roboflow": "train"}[layout]
    for number, image in enumerate("abc"):
        place = "valid" if layout == "roboflow" and image == "c" else inner
        xml = "Annotations" if layout == "published" else place
        put(folder / place / f"{image}.jpg", write_image(number, size=(W, H)))
        put(folder / xml / f"{image}.xml", voc(BOXES[image], f"old name {number}.png"))
    found = {"train": expected("mine", "ab"), "val": expected("mine", "c")}
    if layout == "published":
        put(folder / "ImageSets/Main/train.txt", "a\nb  1\n")
        put(folder / "ImageSets/Main/val.txt", "c\n")
        put(folder / "ImageSets/Main/trainval.txt", "a\nb\nc\n")
    elif layout == "beside":
        found = {"train": expected("mine")}
    assert run(folder, tmp_path / "out") == found


def test_labelme(tmp_path):
    folder = tmp_path / "mine"
    for number, image in enumerate("abc"):
        put(folder / f"{image}.jpg", write_image(number, size=(W, H)))
        shapes = [{"label": NAMES[c], "points": [[x0, y0], [x1, y1]], "shape_type": "rectangle"}
                  for c, (x0, y0, x1, y1) in BOXES[image]]  # fmt: skip
        if image == "a":  # an outline, a point that has no area
            shapes[1] |= {"shape_type": "polygon", "points": [[16, 12], [32, 20], [20, 24]]}
            shapes.append({"label": "cup", "points": [[3, 3]], "shape_type": "point"})
        content = {"shapes": shapes, "imagePath": f"..\\x\\{image}.jpg", "imageWidth": W, "imageHeight": H}
        put(folder / f"{image}.json", content)
    assert run(folder, tmp_path / "out") == {"train": expected("mine")}
    lines = [json.loads(line) for line in (tmp_path / "out/train/drops.jsonl").read_text().splitlines()]
    assert [(line["reason"], line["subject"]) for line in lines] == [("shape without area", "mine_a")]


def test_odvg_of_detections_and_of_groundings(tmp_path):
    folder = tmp_path / "mine"
    lines: dict[str, list] = {"train": [], "val": []}
    for number, image in enumerate("abc"):
        put(folder / "images" / f"{image}.jpg", write_image(number, size=(W, H)))
        instances = [{"bbox": box, "label": c, "category": NAMES[c]} for c, box in BOXES[image]]
        about = {"filename": f"{image}.jpg", "height": H, "width": W}
        lines["val" if image == "c" else "train"].append({**about, "detection": {"instances": instances}})
    for split, content in lines.items():
        put(folder / f"{split}.jsonl", "".join(json.dumps(line) + "\n" for line in content) + "oops\n")
    assert run(folder, tmp_path / "out") == {"train": expected("mine", "ab"), "val": expected("mine", "c")}

    regions = [{"bbox": [8, 6, 40, 30], "phrase": "a cup"}, {"bbox": [[0, 0, 9, 9], [2, 2, 5, 5]], "phrase": "A cup"},
               {"bbox": [1, 1, 4, 4], "phrase": "a dog"}]  # fmt: skip
    ground = {"filename": "a.jpg", "grounding": {"caption": "a cup beside a cup", "regions": regions}}
    put(tmp_path / "g" / "train.jsonl", json.dumps(ground) + "\n")
    put(tmp_path / "g" / "a.jpg", write_image(0, size=(W, H)))
    assert main(["shards", "boxes", str(tmp_path / "g"), "--out", str(tmp_path / "o")]) == 0
    record = ShardSet(tmp_path / "o/train").record(0)
    assert record["captions"] == [{"text": "a cup beside a cup", "phrases": [
        {"span": [[0, 5]], "boxes": [0]}, {"span": [[13, 18]], "boxes": [1, 2]}]}]  # fmt: skip
    assert [entry["box"] for entry in record["boxes"]] == [[8, 6, 40, 30], [0, 0, 9, 9], [2, 2, 5, 5]]


def coco(folder: Path, images: str = "abc") -> Path:
    categories = [{"id": 5, "name": "cup"}, {"id": 9, "name": "red block"}]
    annotations: list[dict] = []
    for number, image in enumerate(images):
        put(folder / f"{image}.jpg", write_image(number, size=(W, H)))
        annotations += [{"id": len(annotations) + i, "image_id": number, "category_id": (5, 9)[c],
                         "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
                        for i, (c, b) in enumerate(BOXES[image[0]])]  # fmt: skip
    entries = [{"id": i, "file_name": f"{image}.jpg", "width": W, "height": H} for i, image in enumerate(images)]
    put(folder / "annotations.json", {"images": entries, "annotations": annotations, "categories": categories})
    return folder


def test_coco_and_names_of_classes_from_a_file(tmp_path, capsys):
    folder = coco(tmp_path / "mine")
    assert run(folder, tmp_path / "a") == {"train": expected("mine")}
    assert "mine: COCO (guessed); train: annotations.json" in capsys.readouterr().out
    for number, text in enumerate(("mug\nred block\n", "cup = mug\n")):
        names = put(tmp_path / "names.txt", text)
        found = run(folder, tmp_path / f"b{number}", "--classes", str(names))
        assert [name for name, _ in found["train"]["mine_a"]] == ["mug", "red block"]
        assert ShardSet(tmp_path / f"b{number}/train").categories[0]["id"] == 5
    for text, said in (("one\n", "1 names for 2 classes"), ("dog = cat\n", "no class is called 'dog'; they are cup"),
                       ("a = b\nc\n", "every line must be `old = new`"), ("", "no names in it")):  # fmt: skip
        names = put(tmp_path / "names.txt", text)
        assert main(["shards", "boxes", str(folder), "--out", "x", "--classes", str(names)]) == 1
        assert said in capsys.readouterr().err


def test_val_share_divides_images_by_seed(tmp_path):
    images = [f"{'abc'[i % 3]}{i:02d}" for i in range(40)]
    folder = coco(tmp_path / "mine", images)  # type: ignore[arg-type]
    first = run(folder, tmp_path / "1", "--val-share", "0.2")
    again = run(folder, tmp_path / "2", "--val-share", "0.2", "--workers", "1", "--shard-samples", "3")
    other = run(folder, tmp_path / "3", "--val-share", "0.2", "--seed", "1")
    assert {split: len(found) for split, found in first.items()} == {"train": 32, "val": 8}
    assert first == again
    assert first["val"].keys() != other["val"].keys()
    assert first["train"] | first["val"] == {f"mine_{i}": expected("", i[0])[f"_{i[0]}"] for i in images}


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (lambda f: f.mkdir(), [], "neither COCO, VOC, YOLO, labelme, ODVG, CVAT nor a table of boxes was recognised"),
        (lambda f: None, [], "no such folder"),
        (lambda f: yolo(f, "images", "labels"), [], "no class has a name; give a text file of them by --classes"),
        (lambda f: yolo(f, "images", "labels"), ["--format", "voc"], "nothing of the format VOC found here"),
        (lambda f: (yolo(f, "images", "labels"), put(f / "labels/a.txt", "0 20 30 10 10\n"),
                    put(f / "labels/c.txt", "0 20 30 10 10\n"), put(f / "classes.txt", "cup\n")), [],
         "2 of 2 boxes of the first labels are larger than the image"),
        (lambda f: put(f / "data.yaml", "train: images/nowhere\nnames: [cup]\n"), [], "names 'images/nowhere'"),
        (lambda f: put(f / "data.yaml", "names: [cup\n"), [], "data.yaml: not a YAML file"),
        (lambda f: put(f / "via.json", '{"_via_settings": {}}'), [], "via.json: VIA's format; export it as COCO"),
        (lambda f: coco(f), ["--split", "val"], "COCO without a split 'val'; it has train"),
        (lambda f: (coco(f), coco(f / "valid")), ["--val-share", "0.5"], "divides the training images"),
    ],
)  # fmt: skip
def test_refused_in_one_line(make, options, said, tmp_path, capsys):
    make(tmp_path / "mine")
    assert main(["shards", "boxes", str(tmp_path / "mine"), "--out", str(tmp_path / "out"), *options]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def voc_file(name: str, label: str, encoding: str, declared: str = "") -> bytes:
    corners = "<xmin>8</xmin><ymin>6</ymin><xmax>40</xmax><ymax>30</ymax>"
    start = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    return f"{start}<annotation><filename>{name}.jpg</filename><object><name>{label}</name><bndbox>{corners}</bndbox>\
</object></annotation>".encode(encoding)


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("utf-8", ""),
        ("latin-1", "ISO-8859-1"),
        ("gbk", "GBK"),
        ("gbk", "gb2312"),
        ("utf-16", "utf-16"),
        ("big5", "Big5"),
    ],
)
def test_voc_is_read_in_the_encoding_that_it_declares(encoding, declared, tmp_path):
    label = "gr\u00fcn" if encoding == "latin-1" else "\u5b57"
    put(tmp_path / "set/a.jpg", write_image(0, size=(W, H)))
    put(tmp_path / "set/a.xml", voc_file("a", label, encoding, declared))
    assert run(tmp_path / "set", tmp_path / "out") == {"train": {"set_a": [(label, BOXES["a"][0][1])]}}


LATIN = "0: gr\u00fcn\n".encode("latin-1")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda f: (yolo(f, "images", "labels"), put(f / "classes.txt", LATIN)), "classes.txt"),
        (lambda f: (yolo(f, "images", "labels"), put(f / "x.yaml", b"train: images\nnames:\n  " + LATIN)), "x.yaml"),
        (lambda f: (yolo(f, "images", "labels"), put(f / "train.txt", LATIN),
                    put(f / "data.yaml", "train: train.txt\nnames: [cup]\n")), "train.txt"),
        (lambda f: put(f / "a.xml", voc_file("a", "gr\u00fcn", "latin-1")), "a.xml"),
        (lambda f: put(f / "a.json", '{"shapes": [{"label": "gr\u00fcn"}]}'.encode("latin-1")), "a.json"),
        (lambda f: put(f / "coco.json", '{"categories": [{"id": 1, "name": "gr\u00fcn"}], "images": [], \
"annotations": []}'.encode("latin-1")), "coco.json"),
        (lambda f: put(f / "train.jsonl", '{"filename": "a.jpg", "detection": {"instances": [{"bbox": [1, 1, 9, 9], \
"label": 0, "category": "gr\u00fcn"}]}}\n'.encode("latin-1")), "train.jsonl"),
    ],
)  # fmt: skip
def test_a_file_in_another_encoding_is_named_with_the_remedy(make, named, tmp_path, capsys):
    """Whatever the format: the file, not the set, and not what follows from it."""
    put(tmp_path / "set/a.jpg", write_image(0, size=(W, H)))
    make(tmp_path / "set")
    assert main(["shards", "boxes", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert named in line
    assert "UTF-8" in line


def test_val_share_of_a_python_caller_is_between_0_and_1():
    for share in (0, 1, 1.5, float("nan")):
        with pytest.raises(ConversionError, match="a share between 0 and 1"):
            divide(pytest.fail, share, seed=0)


def test_splits_by_name():
    names = {"instances_train2017": "train", "valid": "val", "captions_val2014": "val", "minival": "val",
             "test-00000-of-00001": "test", "training": "train", "trains": None, "latest": None}  # fmt: skip
    assert {name: split_of(name) for name in names} == names


@pytest.fixture(scope="module")
def real(tmp_path_factory, shared) -> Path:
    """coco128 in both forms, and bccd, from the real data."""
    if not (shared / "real/coco128").is_dir() or not (shared / "real/bccd").is_dir():
        pytest.skip("the real sets coco128 and bccd are not there")
    out = tmp_path_factory.mktemp("real")
    for form in ("coco", "yolo"):
        command = ["shards", "boxes", str(shared / "real/coco128"), "--format", form, "--out", str(out / form)]
        assert main([*command, "--no-decode-check"]) == 0
    bccd = ["shards", "boxes", str(shared / "real/bccd"), "--out", str(out / "bccd"), "--no-decode-check"]
    assert main(bccd) == 0
    return out


def test_yolo_and_coco_of_one_set_are_the_same_bytes(real):
    for split, boxes in (("train", 929), ("val", 898)):
        one, other = (sorted((real / form / split).glob("*.tar")) for form in ("coco", "yolo"))
        assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
        assert ShardSet(real / "yolo" / split).categories == ShardSet(real / "coco" / split).categories
        assert json.loads((real / "yolo" / split / "dataset.json").read_text())["annotations"] == {"boxes": boxes}


def test_bccd_has_its_published_boxes_less_the_two_without_area(real):
    infos = {split: json.loads((real / "bccd" / split / "dataset.json").read_text())
             for split in ("train", "val", "test")}  # fmt: skip
    assert {split: info["samples"] for split, info in infos.items()} == {"train": 205, "val": 87, "test": 72}
    assert sum(info["annotations"]["boxes"] for info in infos.values()) == 4888 - 2
    dropped = [line for split in infos for line in (real / "bccd" / split / "drops.jsonl").read_text().splitlines()]
    subjects = [json.loads(line)["subject"] for line in dropped]
    assert sorted(re.findall(r"\d+$", name)[0] for name in subjects) == ["00338", "00343"]


def words(folder: Path) -> list[str]:
    return ["shards", "boxes", str(folder), "--out", str(folder.parent / "out")]


def test_a_source_that_has_changed_is_no_finished_set(tmp_path, capsys):
    """Corrected labels, other names of classes, one image more: each is refused; what has not changed is said to be
    complete, and so is a set of an older version, which does not know what it was made of."""
    folder, made = tmp_path / "mine", tmp_path / "out/train/dataset.json"
    yolo(folder, "images/train", "labels/train")
    names = put(tmp_path / "names.txt", "cup\nred block\n")
    put(folder / "data.yaml", "train: images/train\nnames: [a, b]\n")
    command = [*words(folder), "--classes", str(names)]
    assert main(command) == 0
    before = made.read_bytes()
    capsys.readouterr()
    assert main(command) == 0
    assert "already complete: nothing was read again; --overwrite makes it again" in capsys.readouterr().out
    changes = [
        lambda: put(folder / "labels/train/a.txt", "0 .5 .5 .25 .25\n"),
        lambda: put(names, "mug\nred brick\n"),
        lambda: put(folder / "images/train/d.jpg", write_image(3, size=(W, H))),
    ]
    for change in changes:
        change()
        assert main(command) == 1
        assert "the source has changed since" in (said := capsys.readouterr().err)
        assert "pass --overwrite to make it again" in said
        assert made.read_bytes() == before
        assert main([*command, "--overwrite"]) == 0
        before = made.read_bytes()
    info = json.loads(before)
    del info["conversion"]["source"]
    made.write_text(json.dumps(info))
    put(folder / "labels/train/a.txt", "1 .5 .5 .25 .25\n")
    assert main(command) == 0


def test_a_broken_off_conversion_begins_again_when_files_came(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "mine"
    yolo(folder, "images/train", "labels/train")
    put(folder / "data.yaml", "train: images/train\nnames: ['cup', 'red block']\n")
    make, made = pieces._make_piece, []

    def breaks_off(*piece: Any) -> int:
        made.append(piece)
        if len(made) == 2:
            raise KeyboardInterrupt
        return make(*piece)

    monkeypatch.setattr(pieces, "_make_piece", breaks_off)
    assert main([*words(folder), "--shard-samples", "2"]) == 130
    monkeypatch.undo()
    put(folder / "images/train/Z.jpg", write_image(3, size=(W, H)))  # the first in the order of names
    assert main([*words(folder), "--shard-samples", "2"]) == 0
    assert "it begins again" in capsys.readouterr().err
    shards = ShardSet(tmp_path / "out/train")
    assert [shards.record(i)["image_id"] for i in range(len(shards))] == ["mine_Z", "mine_a", "mine_b", "mine_c"]


def test_a_split_of_an_earlier_division_does_not_stay(tmp_path, capsys):
    folder = tmp_path / "mine"
    yolo(folder, "images/train", "labels/train")
    put(folder / "data.yaml", "train: images/train\nnames: ['cup', 'red block']\n")
    assert main([*words(folder), "--val-share", "0.3"]) == 0
    put(tmp_path / "out/val/notes.txt", "mine")
    assert main(words(folder)) == 1
    assert "out/val is a set of an earlier command" in capsys.readouterr().err
    assert main([*words(folder), "--overwrite"]) == 0
    assert f"removed {tmp_path}/out/val" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out/val").iterdir()] == ["notes.txt"]
    assert len(ShardSet(tmp_path / "out/train")) == 3
