"""Which image a box belongs to: files of one name in several folders, images that are missing, folders of splits."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from raw_common import put
from test_own_boxes import W as WIDTH
from test_own_boxes import run, voc

from fiber.cli.main import main
from fiber.data.shards import ShardSet

RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)
CATEGORIES = [{"id": 1, "name": "cup"}]


def paint(path: Path, color: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, 48), color).save(path)


def colors(out: Path) -> dict[str, tuple[int, int, int]]:
    """image_id -> the color of its image."""
    shards, found = ShardSet(out), {}
    for number in range(len(shards)):
        sample = shards.read(number)
        assert sample is not None
        with Image.open(io.BytesIO(sample.images[0][1])) as image:
            found[shards.record(number)["image_id"]] = image.convert("RGB").getpixel((9, 9))
    return found


def reasons(out: Path) -> list[str]:
    return sorted(json.loads(line)["reason"] for line in (out / "drops.jsonl").read_text().splitlines())


def labelme(name: str) -> dict[str, Any]:
    shape = {"label": "cup", "points": [[8, 6], [40, 30]], "shape_type": "rectangle"}
    return {"shapes": [shape], "imagePath": name, "imageWidth": WIDTH, "imageHeight": 48}


BOX = [(0, [8, 6, 40, 30])]


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("form", ["labelme", "voc", "published"])
def test_the_image_beside_is_the_one_of_an_annotation_file(form, top, tmp_path):
    """Whatever else has its name; a top-level image neither takes the place of others nor is needed."""
    folder = tmp_path / "set"
    places = {"s1": GREEN, "s2": BLUE, **({"": RED} if top else {})}
    for place, color in places.items():
        paint(folder / ("JPEGImages" if form == "published" else "") / place / "a.png", color)
        if form == "labelme":
            put(folder / place / "a.json", labelme("a.png"))
        else:
            xml = folder / ("Annotations" if form == "published" else "") / place / "a.xml"
            put(xml, voc(BOX, "other.jpg"))  # type: ignore[arg-type]
    run(folder, tmp_path / "out")
    expected = {f"set_{place}/a" if place else "set_a": color for place, color in places.items()}
    assert colors(tmp_path / "out/train") == expected


def test_splits_with_one_name_and_another_extension_than_the_file_says(tmp_path):
    for place, color in (("train", RED), ("valid", GREEN)):
        paint(tmp_path / "set" / place / "frame_1.png", color)
        put(tmp_path / "set" / place / "frame_1.xml", voc(BOX, "frame_1.jpg"))  # type: ignore[arg-type]
    run(tmp_path / "set", tmp_path / "out")
    assert colors(tmp_path / "out/train") == {"set_frame_1": RED}
    assert colors(tmp_path / "out/val") == {"set_frame_1": GREEN}


@pytest.mark.parametrize("form", ["coco", "voc", "labelme", "odvg", "table"])
def test_a_missing_image_is_not_one_of_another_split(form, tmp_path):
    """train has b and not a, val has a."""
    folder = tmp_path / "set"
    paint(folder / "train/b.png", RED)
    paint(folder / "valid/a.png", GREEN)
    for place, names in (("train", "ab"), ("valid", "a")):
        for name in names:
            if form == "voc":
                put(folder / place / f"{name}.xml", voc(BOX, f"{name}.png"))  # type: ignore[arg-type]
            if form == "labelme":
                put(folder / place / f"{name}.json", labelme(f"{name}.png"))
        files = [f"{name}.png" for name in names]
        if form == "coco":
            images = [{"id": i, "file_name": name} for i, name in enumerate(files)]
            boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [8, 6, 32, 24]} for i in range(len(files))]
            whole = {"images": images, "annotations": boxes, "categories": CATEGORIES}
            put(folder / place / "_annotations.coco.json", whole)
        instances = [{"bbox": [8, 6, 40, 30], "label": 0, "category": "cup"}]
        if form == "odvg":
            lines = [json.dumps({"filename": name, "detection": {"instances": instances}}) + "\n" for name in files]
            put(folder / f"{place}.jsonl", "".join(lines))
        if form == "table":
            rows = "".join(f"{name},cup,8,6,40,30\n" for name in files)
            put(folder / f"{place}.csv", "filename,class,xmin,ymin,xmax,ymax\n" + rows)
    run(folder, tmp_path / "out")
    assert set(colors(tmp_path / "out/train").values()) == {RED}
    assert set(colors(tmp_path / "out/val").values()) == {GREEN}
    assert reasons(tmp_path / "out/train") == ["missing image"]


@pytest.mark.parametrize(
    ("names", "there", "found"),
    [
        (["a/1.png", "b/1.png"], ["a/1.png"], ["a/1.png"]),
        (["x/s/1.png", "y/s/1.png"], ["x/s/1.png"], ["x/s/1.png"]),
        (["a/1.png", "a/1.jpg"], ["a/1.png"], ["a/1.png"]),
        (["b/1.png"], ["a/1.png", "b/2.png"], []),  # b was downloaded in part
        (["b/1.png"], ["a/1.png"], ["a/1.png"]),  # b is a folder of another machine
        (["a\\1.jpg"], ["shots/a/1.png"], ["shots/a/1.png"]),
    ],
)
@pytest.mark.parametrize("form", ["odvg", "table"])
def test_a_missing_image_stays_missing(form, names, there, found, tmp_path):
    folder, place = tmp_path / "set", {name: (20 * i, 90, 0) for i, name in enumerate(there)}
    for name, color in place.items():
        paint(folder / name, color)
    paint(folder / "other/z.png", BLUE)
    names = [*names, "z.png"]
    if form == "odvg":
        lines = [json.dumps({"filename": name, "detection": {"instances": [
            {"bbox": [8, 6, 40, 30], "label": 0, "category": "cup"}]}}) for name in names]  # fmt: skip
        put(folder / "train.jsonl", "\n".join(lines))
    else:
        rows = "".join(f"{name},cup,8,6,40,30\n" for name in names)
        put(folder / "boxes.csv", "filename,class,xmin,ymin,xmax,ymax\n" + rows)
    run(folder, tmp_path / "out")
    assert sorted(colors(tmp_path / "out/train").values()) == sorted([BLUE, *(place[name] for name in found)])
    missing = len(names) - 1 - len(found)
    assert reasons(tmp_path / "out/train").count("missing image") == missing


@pytest.mark.parametrize("form", ["labelme", "voc", "yolo"])
@pytest.mark.parametrize(
    ("places", "train", "said"),
    [
        (["train_a", "train_b"], 2, ""),
        (["test", "batch1", "batch2"], 2, "train: set but for the other splits"),
        (["train", "car"], 2, "train: train, set but for the other splits"),
        (["train", "val", "old", "older"], 1, "LEFT OUT: 2 in folders of no split"),
    ],
)
def test_all_folders_of_a_split_and_those_of_none(form, places, train, said, tmp_path, capsys):
    folder = tmp_path / "set"
    for number, place in enumerate(places):
        inner = folder / ("images" if form == "yolo" else "") / place
        paint(inner / f"{number}.png", RED)
        if form == "labelme":
            put(inner / f"{number}.json", labelme(f"{number}.png"))
        elif form == "voc":
            put(inner / f"{number}.xml", voc(BOX, f"{number}.png"))  # type: ignore[arg-type]
        else:
            put(folder / "labels" / place / f"{number}.txt", "0 .5 .5 .2 .2\n")
            put(folder / "classes.txt", "cup\n")
    found = run(folder, tmp_path / "out")
    assert len(found["train"]) == train
    shown = capsys.readouterr().out.replace("/*.json", "").replace("/*.xml", "").replace("images/", "")
    if form == "yolo":
        said = said.replace("set but", "images but")
    assert said in shown


def test_names_in_an_image_list_of_voc(tmp_path):
    folder = tmp_path / "set"
    for name in ("my photo 1", "a", "b", "c"):
        paint(folder / "JPEGImages" / f"{name}.png", RED)
        put(folder / "Annotations" / f"{name}.xml", voc(BOX, f"{name}.png"))  # type: ignore[arg-type]
    secret = put(tmp_path / "secret.xml", voc(BOX, "a.png"))  # type: ignore[arg-type]
    lines = ["my photo 1", "a.png", "b.xml  1", "c -1", "gone", "../../secret", str(secret), str(secret)[:-4]]
    put(folder / "ImageSets/Main/train.txt", "\n".join(lines) + "\n")
    found = run(folder, tmp_path / "out")
    assert set(found["train"]) == {"set_my photo 1", "set_a", "set_b", "set_c"}
    assert reasons(tmp_path / "out/train") == ["annotation file missing"] + 3 * ["name outside of the folder"]


def odvg(path: Path, instances: list[dict[str, Any]], **more: Any) -> str:
    return json.dumps({"filename": path.name, "detection": {"instances": instances}, **more}) + "\n"


def test_labels_and_names_of_odvg(tmp_path, capsys):
    folder, box = tmp_path / "set", [8, 6, 40, 30]
    for name in ("a.png", "a.jpg", "b.png"):
        paint(folder / name, RED)
    labels: list[Any] = ["0", 1.0, True, None, "cup"]
    instances = [{"bbox": box, "label": label, "category": ("cup", "dog")[label == 1.0]} for label in labels]
    lines = [odvg(folder / "a.png", instances), odvg(folder / "a.jpg", instances[:1])]
    lines += ['{"filename": "", "detection": {}}\n', odvg(folder / "b.png", []), odvg(folder / "b.png", instances)]
    put(folder / "train.jsonl", "".join(lines))
    assert run(folder, tmp_path / "out")["train"] == {
        "set_a.png": [("cup", box), ("dog", box)], "set_a.jpg": [("cup", box)], "set_b": []}  # fmt: skip
    assert reasons(tmp_path / "out/train") == ["file listed more than once", "line malformed"] + 3 * [
        "unknown category"
    ]
    put(folder / "train.jsonl", odvg(folder / "a.png", [{"bbox": box, "label": 0, "category": "cup"},
                                                         {"bbox": box, "label": 0, "category": "mug"}]))  # fmt: skip
    assert main(["shards", "boxes", str(folder), "--out", str(tmp_path / "two")]) == 1
    assert "train.jsonl, line 1: label 0 is 'mug' here and 'cup' before" in capsys.readouterr().err


def test_phrases_of_odvg_are_whole_words(tmp_path):
    caption = "a woman on a carpet, a man beside a car, \u4e00\u53ea\u732b"
    regions = [{"bbox": [1, 1, 9, 9], "phrase": text} for text in ("man", "car", "\u732b", "bes")]
    paint(tmp_path / "set/a.png", RED)
    line = {"filename": "a.png", "grounding": {"caption": caption, "regions": regions}}
    put(tmp_path / "set/train.jsonl", json.dumps(line) + "\n")
    assert main(["shards", "boxes", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 0
    (found,) = ShardSet(tmp_path / "out/train").record(0)["captions"]
    assert [phrase["span"] for phrase in found["phrases"]] == [[[23, 26]], [[36, 39]], [[43, 44]]]
    assert reasons(tmp_path / "out/train") == ["phrase not in the caption"]
