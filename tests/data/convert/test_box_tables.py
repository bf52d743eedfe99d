"""Own boxes in CVAT's XML and in tables: the set that `test_own_boxes` writes in other formats."""

import json
from xml.etree import ElementTree

import pytest
from raw_common import put, write_image
from test_own_boxes import BOXES, NAMES, H, W, coco, expected, run, voc

from fiber.cli.main import main
from fiber.data.convert.boxes_table import recognised
from fiber.data.convert.by_image import ByImage
from fiber.data.convert.items import Drop
from fiber.data.shards import ShardSet


def images(folder, names="abc"):
    for name in names:
        put(folder / f"{name}.jpg", write_image("abc".index(name), size=(W, H)))


def cells(box):
    return ",".join(map(str, box))


def tensorflow(names):
    rows = [f"{image}.jpg,{W},{H},{NAMES[c]},{cells(box)}\n" for image in names for c, box in BOXES[image]]
    empty = [f"{image}.jpg,{W},{H},,,,,\n" for image in names if not BOXES[image]]
    return "filename,width,height,class,xmin,ymin,xmax,ymax\n" + "".join([*rows, *empty])


def cvat(names, subset="", extra=""):
    shapes = {
        image: "".join(
            f'<box label="{NAMES[c]}" occluded="0" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}" z_order="0"></box>'
            for c, (x0, y0, x1, y1) in BOXES[image]
        )
        for image in names
    }
    labels = "".join(f"<label><name>{name}</name><color>#ff0000</color></label>" for name in NAMES)
    found = "".join(
        f'<image id="{i}" name="{image}.jpg" {subset and subset[i]} width="{W}" height="{H}">{shapes[image]}</image>'
        for i, image in enumerate(names)
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><labels>{labels}'
        f"</labels></task></meta>{found}{extra}</annotations>"
    )


def shares_table():
    rows = [
        f"{image},xclick,{NAMES[c]},1,{x0 / W},{x1 / W},{y0 / H},{y1 / H}\n"
        for image in "abc"
        for c, (x0, y0, x1, y1) in BOXES[image]
    ]
    return "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\n" + "".join(rows) + "b,,,,,,,\n"


def sides(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def hugging_face(names, lists):
    lines = []
    for image in names:
        if lists:
            objects = {
                "bbox": [sides(box) for _, box in BOXES[image]],
                "categories": [NAMES[c] for c, _ in BOXES[image]],
            }
        else:
            objects = [{"bbox": sides(box), "category": NAMES[c]} for c, box in BOXES[image]]
        lines.append(json.dumps({"file_name": f"{image}.jpg", "width": W, "height": H, "objects": objects}) + "\n")
    return "".join(lines)


LAYOUTS = ["roboflow", "six columns", "shares", "x y w h", "semicolons", "lists", "objects", "split"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_in_every_layout(layout, tmp_path):
    folder = tmp_path / "mine"
    found = {"train": expected("mine")}
    if layout in ("roboflow", "lists", "objects"):
        found = {"train": expected("mine", "ab"), "val": expected("mine", "c")}
        for split, names in (("train", "ab"), ("valid", "c")):
            images(folder / split, names)
            if layout == "roboflow":
                put(folder / split / "_annotations.csv", tensorflow(names))
            else:
                put(folder / split / "metadata.jsonl", hugging_face(names, layout == "lists"))
    elif layout == "six columns":  # keras-retinanet's, rows of an image apart
        images(folder / "images")
        rows = ["images/a.jpg,8,6,40,30,cup\n", "images/b.jpg,,,,,\n", "images/c.jpg,0,0,64,48,red block\n",
                "images/a.jpg,16,12,32,24,red block\n"]  # fmt: skip
        put(folder / "annotations.csv", "".join(rows))
    elif layout == "shares":
        images(folder / "train")
        put(folder / "train-annotations-bbox.csv", shares_table())
    elif layout == "x y w h":
        images(folder)
        rows = [f"{image}.jpg,{NAMES[c]},{cells(sides(box))}\n" for image in "abc" for c, box in BOXES[image]]
        put(folder / "boxes.csv", "image,label,x,y,width,height\n" + "".join(rows) + "b.jpg,,,,,\n")
    elif layout == "semicolons":
        images(folder)
        put(folder / "boxes.csv", "\ufeff" + tensorflow("abc").replace(",", ";"))
    else:
        images(folder)
        lines = tensorflow("abc").splitlines()
        words = {"filename": "split", "a.jpg": "train", "b.jpg": "train", "c.jpg": "valid"}
        put(folder / "boxes.csv", "".join(f"{line},{words[line.partition(',')[0]]}\n" for line in lines))
        found = {"train": expected("mine", "ab"), "val": expected("mine", "c")}
    assert run(folder, tmp_path / "out") == found


def test_a_table_without_classes_has_one(tmp_path, capsys):
    folder = tmp_path / "wheat"
    images(folder / "train")
    boxes = [(image, sides(box)) for image in "abc" for _, box in BOXES[image]]
    put(folder / "train.csv", "image_id,width,height,bbox\n" + "".join(f'{i},{W},{H},"{box}"\n' for i, box in boxes))
    expect = {f"wheat_{image}": [("object", box) for _, box in BOXES[image]] for image in "ac"}
    assert run(folder, tmp_path / "out") == {"train": expect}
    assert "train.csv, no column of classes: all are called object" in capsys.readouterr().out
    for number, text in enumerate(("object = wheat head\n", "wheat head\n")):
        names = put(tmp_path / "names.txt", text)
        found = run(folder, tmp_path / f"named{number}", "--classes", str(names))["train"]
        assert {name for boxes in found.values() for name, _ in boxes} == {"wheat head"}


def test_what_is_wrong_in_a_table_is_counted(tmp_path):
    folder = tmp_path / "set"
    images(folder)
    rows = ["a.jpg,cup,8,6,40,30", "a.jpg,cup,8,six,40,30", "a.jpg,cup,8,6,8,30", "a.jpg,,1,2,3,4", "c.jpg,cup,1",
            "gone.jpg,cup,1,1,9,9",
            "c.jpg,cup,nan,1,9,9", "c.jpg,cup,1,1,9,9"]  # fmt: skip
    put(folder / "boxes.csv", "filename,class,xmin,ymin,xmax,ymax\n" + "\n".join(rows) + "\n")
    assert run(folder, tmp_path / "out")["train"] == {
        "set_a": [("cup", [8, 6, 40, 30])],
        "set_c": [("cup", [1, 1, 9, 9])],
    }
    lines = [json.loads(line) for line in (tmp_path / "out/train/drops.jsonl").read_text().splitlines()]
    assert sorted(line["reason"] for line in lines if not line["kept"]) == sorted(
        ["box malformed", "box malformed", "box without area", "unknown category", "row malformed", "missing image"]
    )


def test_what_is_wrong_in_lines_of_objects_is_counted(tmp_path):
    folder = tmp_path / "set"
    images(folder, "ac")
    good = {"bbox": [8, 6, 32, 24], "category": "Åcup"}  # its second byte alone would be the end of a line
    lines = [
        {
            "file_name": "a.jpg",
            "width": "²",
            "objects": [good, {"bbox": "1234", "category": "Åcup"}, {"bbox": [1, 1, 5, 5]}],
        },
        {"file_name": "c.jpg", "objects": {"bbox": [[1, 1, 8, 8], [2, 2]], "categories": ["Åcup"]}},
        {"file_name": 3, "objects": []},
        {"file_name": "gone.jpg", "objects": None},
    ]
    put(folder / "metadata.jsonl", "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n{broken\n")
    found = run(folder, tmp_path / "out")
    assert found == {"train": {"set_a": [("Åcup", [8, 6, 40, 30])], "set_c": [("Åcup", [1, 1, 9, 9])]}}
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out/train/drops.jsonl").read_text().splitlines()]
    assert sorted(reasons) == sorted(
        ["box malformed", "box malformed", "unknown category", "entry malformed", "entry malformed", "line malformed"]
    )


def test_numbers_for_classes_are_warned_of(tmp_path, capsys):
    images(tmp_path / "set/train")
    lines = hugging_face("abc", lists=True).replace('"cup"', "0").replace('"red block"', "10")
    put(tmp_path / "set/train/metadata.jsonl", lines)
    assert {name for boxes in run(tmp_path / "set", tmp_path / "out")["train"].values() for name, _ in boxes} == {
        "0",
        "10",
    }
    assert "class names that are numbers say nothing to the model: 0, 10" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["table", "cvat"])
def test_images_of_one_name_stay_apart(form, tmp_path):
    """One name in two folders, and two kinds of file of one stem."""
    folder = tmp_path / "set"
    names = ["one/a.jpg", "two/a.jpg", "one/b.jpg", "one/b.png"]
    for number, name in enumerate(names):
        put(folder / "images" / name, write_image(number, "PNG" if name.endswith("png") else "JPEG", size=(W, H)))
    if form == "table":
        rows = [f"{name},cup,{number},1,9,9\n" for number, name in enumerate(names)]
        put(folder / "boxes.csv", "filename,class,xmin,ymin,xmax,ymax\n" + "".join(rows))
    else:
        found = "".join(
            f'<image id="{number}" name="{name}"><box label="cup" xtl="{number}" ytl="1" xbr="9" ybr="9"/></image>'
            for number, name in enumerate(names)
        )
        put(folder / "annotations.xml", cvat("", extra=found))
    boxes = {f"set_{name}": [("cup", [number, 1, 9, 9])] for number, name in enumerate(names)}
    assert run(folder, tmp_path / "out") == {"train": boxes}


@pytest.mark.parametrize(
    "header",
    ["filename,caption", "image,label", "id,x,y", "a,b,c,d,e,f", "photo.jpg,1,2", ""],
)
def test_other_tables_have_no_boxes(header, tmp_path):
    assert recognised(put(tmp_path / "t.csv", header + "\nx\n")) is None


def test_rows_lie_where_they_are_read_again(tmp_path):
    text = 'filename,class,xmin,ymin,xmax,ymax\nä.jpg,"a\nb",1,2,3,4\nz.jpg,c,1,2,3,4\nä.jpg,d,5,6,7,8\n'
    rows = recognised(put(tmp_path / "t.csv", text))
    found = [(name, [(label, box) for label, box, _, _ in entries]) for name, entries, _, _ in ByImage(rows)]
    assert found == [("ä.jpg", [("a\nb", [1, 2, 3, 4]), ("d", [5, 6, 7, 8])]), ("z.jpg", [("c", [1, 2, 3, 4])])]
    assert not any(isinstance(row, Drop) for row, _, _ in rows.places())


@pytest.mark.parametrize("layout", ["one file", "subsets", "a file of each split"])
def test_cvat_in_every_layout(layout, tmp_path):
    folder = tmp_path / "mine"
    found = {"train": expected("mine", "ab"), "val": expected("mine", "c")}
    images(folder / "images")
    if layout == "one file":
        put(folder / "annotations.xml", cvat("abc"))
        found = {"train": expected("mine")}
    elif layout == "subsets":
        put(folder / "annotations.xml", cvat("abc", ['subset="Train"', 'subset="Train"', 'subset="Validation"']))
    else:
        put(folder / "annotations" / "train.xml", cvat("ab"))
        put(folder / "annotations" / "val.xml", cvat("c"))
    assert run(folder, tmp_path / "out") == found


def test_shapes_of_cvat(tmp_path):
    """A square of sides 20 turned by 45 degrees reaches 20 / sqrt(2) from its center each way."""
    folder = tmp_path / "set"
    images(folder, "a")
    shapes = (
        '<image id="0" name="a.jpg" width="64" height="48">'
        '<box label="cup" xtl="20" ytl="10" xbr="40" ybr="30" rotation="45"/>'
        '<polygon label="cup" points="1,2;11,4;5,22"/><ellipse label="cup" cx="20" cy="20" rx="8" ry="4"/>'
        '<ellipse label="cup" cx="20" cy="20" rx="8" ry="4" rotation="90"/>'
        '<mask label="new" left="3" top="4" width="10" height="12" rle="1, 2"/>'
        '<polyline label="cup" points="1,1;2,2"/><tag label="sunny"/>'
        '<box label="cup" xtl="1" ytl="x" xbr="2" ybr="3"/>'
        "</image>"
    )
    put(folder / "annotations.xml", cvat("", extra=shapes))
    found = run(folder, tmp_path / "out")["train"]["set_a"]
    reach = 20 / 2**0.5
    assert found == [
        ("cup", pytest.approx([30 - reach, 20 - reach, 30 + reach, 20 + reach])),
        ("cup", [1, 2, 11, 22]),
        ("cup", [12, 16, 28, 24]),
        ("cup", pytest.approx([16, 12, 24, 28])),
        ("new", [3, 4, 13, 16]),
    ]
    lines = (tmp_path / "out/train/drops.jsonl").read_text()
    assert lines.count('"shape without area"') == 2
    assert [
        entry["name"] for entry in json.loads((tmp_path / "out/train/dataset.json").read_text())["categories"]
    ] == [
        *NAMES,
        "new",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<annotations><track id="0" label="cup"><box frame="0"/></track></annotations>', "of a video (tracks)"),
        ("<annotations><image id='0' name='a.jpg'><box", "broken XML"),
    ],
)
def test_cvat_that_cannot_be_used(text, said, tmp_path, capsys):
    images(tmp_path / "set", "a")
    put(tmp_path / "set/annotations.xml", text)
    assert main(["shards", "boxes", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "annotations.xml" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("form", ["table", "cvat"])
def test_real_boxes_are_the_same_records_in_every_form(form, tmp_path, shared):
    """The training images of BCCD, published as VOC, written out by other code."""
    published = shared / "real/bccd"
    if not published.is_dir():
        pytest.skip("the real set bccd is not there")
    stems = (published / "ImageSets/Main/train.txt").read_text().split()
    roots = {stem: ElementTree.parse(published / f"Annotations/{stem}.xml").getroot() for stem in stems}
    folder = tmp_path / "bccd"
    folder.mkdir()
    (folder / "images").symlink_to(published / "JPEGImages")
    found = [
        (stem, root.findtext("size/width"), entry.findtext("name"), [side.text for side in entry.find("bndbox")])
        for stem, root in roots.items()
        for entry in root.iter("object")
    ]
    if form == "table":
        rows = [f"{stem}.jpg,{width},480,{name},{','.join(box)}\n" for stem, width, name, box in found]
        put(folder / "train.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n" + "".join(rows))
    else:
        written = ElementTree.Element("annotations")
        for stem in stems:
            image = ElementTree.SubElement(written, "image", name=f"{stem}.jpg", width="640", height="480")
            for _, _, name, box in (one for one in found if one[0] == stem):
                sides = dict(zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True))
                ElementTree.SubElement(image, "box", label=name, **sides)
        put(folder / "train.xml", ElementTree.tostring(written, encoding="unicode"))
    as_voc = ["shards", "boxes", str(published), "--split", "train", "--out", str(tmp_path / "voc")]
    assert main([*as_voc, "--no-decode-check"]) == 0
    voc = ShardSet(tmp_path / "voc")
    names = {category["id"]: category["name"] for category in voc.categories}
    expect = {r["image_id"]: [(names[b["category"]], b["box"]) for b in r["boxes"]]
              for r in map(voc.record, range(len(voc)))}  # fmt: skip
    assert sum(map(len, expect.values())) == 2804
    assert run(folder, tmp_path / "out", "--no-decode-check") == {"train": expect}


@pytest.mark.parametrize("size", ["64.0", "1e999", "nan", "", "six", "9" * 5000, "²", "-64"])
@pytest.mark.parametrize("form", ["table", "cvat", "voc"])
def test_a_size_that_is_no_whole_number_stops_nothing(form, size, tmp_path):
    """Boxes count without the size that a file gives; the image has its own."""
    folder = tmp_path / "set"
    images(folder, "a")
    if form == "table":
        put(folder / "boxes.csv", tensorflow("a").replace(f"{W},{H},", f"{size},{H},"))
    elif form == "cvat":
        put(folder / "annotations.xml", cvat("a").replace(f'width="{W}"', f'width="{size}"'))
    else:
        put(folder / "a.xml", voc(BOXES["a"], "a.jpg").replace(f"<width>{W}<", f"<width>{size}<"))
    assert run(folder, tmp_path / "out") == {"train": expected("set", "a")}


@pytest.mark.parametrize("kind", ["boxes", "pairs"])
def test_lines_that_end_as_on_an_old_mac_are_said(kind, tmp_path, capsys):
    images(tmp_path / "set", "a")
    text = tensorflow("a") if kind == "boxes" else "image,caption\na.jpg,a cup\n"
    put(tmp_path / "set/table.csv", text.replace("\n", "\r"))
    raw = tmp_path / "set" if kind == "boxes" else tmp_path / "set/table.csv"
    assert main(["shards", kind, str(raw), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "table.csv: its lines end as on an old Mac (CR alone): save it with LF or CR LF" in error
    assert "Traceback" not in error


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    images(tmp_path / "set", "a")
    names = ["10", "9", "007", "1" * 5000]
    rows = [f"a.jpg,{name},1,1,9,{10 + number}\n" for number, name in enumerate(names)]
    put(tmp_path / "set/boxes.csv", "filename,class,xmin,ymin,xmax,ymax\n" + "".join(rows))
    run(tmp_path / "set", tmp_path / "out")
    assert [entry["name"] for entry in ShardSet(tmp_path / "out/train").categories] == ["007", "9", "10", "1" * 5000]


@pytest.mark.parametrize("name", ["BOXES.CSV", "boxes.ndjson", "ANNOTATIONS.XML", "INSTANCES.JSON"])
def test_names_of_files_as_other_systems_write_them(name, tmp_path):
    images(tmp_path / "set")
    if name == "INSTANCES.JSON":
        (coco(tmp_path / "set") / "annotations.json").rename(tmp_path / "set" / name)
    else:
        written = {"CSV": tensorflow, "ndjson": lambda names: hugging_face(names, lists=True), "XML": cvat}
        put(tmp_path / "set" / name, written[name.partition(".")[2]]("abc"))
    assert run(tmp_path / "set", tmp_path / "out") == {"train": expected("set")}
