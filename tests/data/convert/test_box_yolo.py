"""YOLO as tools and people write it: names of classes, capitals, several folders, the folder itself as `.`."""

import json

import pytest
from raw_common import put, write_image
from test_own_boxes import H, W, run

from fiber.cli.main import main
from fiber.data.shards import ShardSet

LINE = "0 .5 .5 .25 .25\n"
BOX = [24.0, 18.0, 40.0, 30.0]


def yolo(folder, names, images=("a.jpg",), label=LINE):
    for image in images:
        put(folder / "images/train" / image, write_image(0, size=(W, H)))
        put(folder / "labels/train" / f"{image.partition('.')[0]}.txt", label)
    put(folder / "data.yaml", f"train: images/train\nnc: 3\nkpt_shape: [0x11, 3]\nnames: {names}\n")
    return folder


def reasons(out):
    return sorted(json.loads(line)["reason"] for line in (out / "drops.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("[yes, no, on]", ["yes", "no", "on"]),
        ("[1.10, 2012-01-01, 0x10]", ["1.10", "2012-01-01", "0x10"]),
        ("[null, true]", ["null", "true"]),
        ("{0: off, 1: 1.10}", ["off", "1.10"]),
        ("{cup: 0, dog: 1}", ["cup", "dog"]),
    ],
)
def test_names_are_those_that_are_written(names, found, tmp_path):
    assert run(yolo(tmp_path / "set", names), tmp_path / "out") == {"train": {"set_a": [(found[0], BOX)]}}
    assert [entry["name"] for entry in ShardSet(tmp_path / "out/train").categories] == found


@pytest.mark.parametrize(
    "names",
    ["person", "5", "[{name: cup}]", "[[cup]]", "{0: {name: cup}}", "{cup: mug}", "['', cup]", "{a: 0, b: 0}"],
)
def test_names_that_are_none_are_said(names, tmp_path, capsys):
    assert main(["shards", "boxes", str(yolo(tmp_path / "set", names)), "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "data.yaml: names must be a list of texts, like [cup, dog]" in line


def test_a_list_finds_images_in_another_case_and_none_of_another_split(tmp_path):
    folder = yolo(tmp_path / "set", "[cup]", ("A 1.JPG", "b.jpg", "d.png"))
    put(folder / "images/val/c.jpg", write_image(1, size=(W, H)))
    put(folder / "train.txt", "".join(f"{name}.jpg\n" for name in (
        "images/train/A%201", "/home/me/images/train/B", "images/train/c", "images/train/d"
    )))  # fmt: skip
    put(folder / "data.yaml", "train: train.txt\nnames: [cup]\n")
    assert run(folder, tmp_path / "out") == {"train": {f"set_{name}": [("cup", BOX)] for name in ("A 1", "b")}}
    assert reasons(tmp_path / "out/train") == ["missing image", "missing image"]


def test_the_folder_of_the_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(yolo(tmp_path / "set", "[cup]"))
    found = run(tmp_path.__class__("."), tmp_path / "out")
    assert found == {"train": {"set_a": [("cup", BOX)]}}
    (tmp_path / "set/data.yaml").unlink()
    put(tmp_path / "set/classes.txt", "cup\n")
    assert run(tmp_path.__class__("."), tmp_path / "guessed") == found


def test_images_of_one_name_in_several_folders(tmp_path):
    folder = tmp_path / "set"
    for place in ("s1", "s2"):
        put(folder / place / "images/a.jpg", write_image(0, size=(W, H)))
        put(folder / place / "labels/a.txt", LINE)
    put(folder / "s2/images/b.jpg", write_image(0, size=(W, H)))
    put(folder / "list.txt", "s1/images/a.jpg\n./s1/images/a.jpg\n")
    put(folder / "data.yaml", "train: [s1/images, s2/images]\nval: list.txt\nnames: [cup]\n")
    boxes = [("cup", BOX)]
    train = {"set_s1/images/a.jpg": boxes, "set_s2/images/a.jpg": boxes, "set_b": []}
    assert run(folder, tmp_path / "out") == {"train": train, "val": {"set_s1/images/a.jpg": boxes}}
    assert reasons(tmp_path / "out/val") == ["file listed more than once"]


def test_capitals_and_numbers_with_a_point(tmp_path):
    folder = tmp_path / "set"
    for name, label in (("A.JPG", LINE), ("b.jpg", "0.0" + LINE[1:]), ("c.jpg", "0.5" + LINE[1:])):
        put(folder / "Images" / name, write_image(0, size=(W, H)))
        put(folder / "Labels" / f"{name[0]}.{'TXT' if name == 'A.JPG' else 'txt'}", label)
    put(folder / "data.yaml", "train: Images\nnames: [cup]\n")
    found = {"set_A": [("cup", BOX)], "set_b": [("cup", BOX)], "set_c": []}
    assert run(folder, tmp_path / "out") == {"train": found}
    assert reasons(tmp_path / "out/train") == ["box malformed"]


def test_label_files_without_an_image_are_counted(tmp_path):
    folder = yolo(tmp_path / "set", "[cup]", ("a.jpg", "b.jpg"))
    (folder / "images/train/b.jpg").unlink()
    put(folder / "labels/train/classes.txt", "cup\n")
    assert run(folder, tmp_path / "out") == {"train": {"set_a": [("cup", BOX)]}}
    (line,) = (tmp_path / "out/train/drops.jsonl").read_text().splitlines()
    drop = json.loads(line)
    assert drop["reason"] == "label file without an image"
    assert drop["detail"].endswith("labels/train/b.txt")
