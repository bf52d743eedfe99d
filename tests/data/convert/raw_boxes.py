"""Raw folders of grounding and detection data."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

from raw_common import HEIGHT, WIDTH, Raw, put, write_image

XML = """<annotation>
    <filename>{name}.jpg</filename><size><width>64</width><height>48</height><depth>3</depth></size>
    <object><name>1</name><name>6</name><bndbox>
        <xmin>1</xmin><ymin>1</ymin><xmax>30</xmax><ymax>47</ymax></bndbox></object>
    <object><name>2</name><bndbox><xmin>40</xmin><ymin>10</ymin><xmax>64</xmax><ymax>48</ymax></bndbox></object>
    <object><name>1</name><bndbox><xmin>31</xmin><ymin>5</ymin><xmax>39</xmax><ymax>47</ymax></bndbox></object>
    <object><name>8</name><scene>1</scene><nobndbox>1</nobndbox></object>
</annotation>"""


def flickr30k_entities(folder: Path) -> Raw:
    """Several types, an object of two chains, notvisual, no final full stop, an unrelated caption, a missing XML."""
    for name in ("1000092795", "36979"):
        put(folder / "Sentences" / f"{name}.txt", (
            "[/EN#1/people Two guys] with [/EN#2/bodyparts/other shaggy hair] look on in [/EN#8/scene the yard] .\n"
            "On [/EN#0/notvisual it] , [/EN#6/people a man 's friend] waits\n"
            "Nothing to see here .\n"))  # fmt: skip
        put(folder / "flickr30k_images" / "train" / f"{name}.jpg", write_image(int(name) % 100))
    put(folder / "Annotations" / "1000092795.xml", XML.format(name="1000092795"))
    put(folder / "train.txt", "1000092795\n36979\n")
    put(folder / "UNRELATED_CAPTIONS", "imageID sentence\n1000092795 2\n")
    return Raw("flickr30k_entities", folder, 1, {"captions": 2},
               dropped={"missing annotation file": 1, "unrelated caption": 1})  # fmt: skip


def _mdetr(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"info": [], "licenses": [], "categories": [{"supercategory": "object", "id": 1, "name": "object"}],
            "images": images, "annotations": annotations}  # fmt: skip


def _mdetr_box(number: int, image: int, box: list[float], spans: list[list[int]]) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": 1, "bbox": box, "tokens_positive": spans, "iscrowd": 0,
            "area": box[2] * box[3]}  # fmt: skip


def mdetr_flickr(folder: Path) -> Raw:
    """Sizes as strings; two captions of one image share a box; a box of two phrases; a caption without boxes."""
    common = {"file_name": "1000092795.jpg", "height": str(HEIGHT), "width": str(WIDTH), "dataset_name": "flickr",
              "original_img_id": 1000092795}  # fmt: skip
    images = [
        {**common, "id": 70, "sentence_id": 0, "caption": "Two guys with hair .", "tokens_negative": [[0, 20]],
         "tokens_positive_eval": [[[0, 8]], [[14, 18]]]},
        {**common, "id": 71, "sentence_id": 1, "caption": "Friends  talk .", "tokens_negative": [[0, 15]],
         "tokens_positive_eval": [[[0, 7]]]},
        {**common, "id": 72, "sentence_id": 2, "caption": "Sunny .", "tokens_negative": [[0, 7]],
         "tokens_positive_eval": []},
    ]  # fmt: skip
    annotations = [
        _mdetr_box(0, 71, [1.0, 2.0, 20.0, 30.0], [[0, 7]]),
        _mdetr_box(1, 70, [1.0, 2.0, 20.0, 30.0], [[0, 8], [14, 18]]),
        _mdetr_box(2, 70, [30.0, 2.0, 10.0, 10.0], [[0, 8]]),
    ]
    path = put(folder / "final_flickr_separateGT_train.json", _mdetr(images, annotations))
    put(folder / "flickr30k" / "flickr30k_images" / "train" / "1000092795.jpg", write_image(5))
    return Raw("mdetr_json", folder, 1, {"captions": 3}, ["--annotations", str(path)])


def mdetr_mixed(folder: Path) -> Raw:
    """A COCO and a Visual Genome image; several captions, several spans a box; a box partly outside."""
    images = [
        {"file_name": "COCO_train2014_000000581857.jpg", "height": HEIGHT, "width": WIDTH, "id": 0,
         "original_id": "581857", "caption": "couple checking out. A woman.", "tokens_negative": [[0, 6]],
         "data_source": "coco",          "dataset_name": "mixed"},
        {"file_name": "2334951.jpg", "height": HEIGHT, "width": WIDTH, "id": 1107630, "original_id": "2334951",
         "caption": "one man wearing pink tie.", "tokens_negative": [], "data_source": "vg", "dataset_name": "mixed"},
        {"file_name": "COCO_train2014_000000581857.jpg", "height": HEIGHT, "width": WIDTH, "id": 5,
         "original_id": "581857", "caption": "grey haired owner", "tokens_negative": [],
         "data_source": "coco", "dataset_name": "mixed"},
    ]  # fmt: skip
    annotations = [
        _mdetr_box(0, 0, [15.387, 2.5, 14.5, 20.6], [[0, 6]]),
        _mdetr_box(1, 1107630, [33, 13, 60, 20], [[0, 3], [4, 7]]),
        _mdetr_box(2, 5, [3, 3, 9, 9], [[0, 4], [5, 17]]),
    ]
    path = put(folder / "final_mixed_train.json", {**_mdetr(images, annotations), "categories": []})
    put(folder / "train2014" / "COCO_train2014_000000581857.jpg", write_image(6))
    put(folder / "gqa" / "images" / "2334951.jpg", write_image(7))
    return Raw("mdetr_json", folder, 2, {"captions": 3}, ["--annotations", str(path)],
               noted={"box clipped to the image": 1})  # fmt: skip


def mdetr_refcoco(folder: Path) -> Raw:
    images = [
        {"file_name": "COCO_train2014_000000581857.jpg", "height": HEIGHT, "width": WIDTH, "id": k,
         "original_id": 581857, "caption": text, "dataset_name": "refcoco", "tokens_negative": []}
        for k, text in enumerate(["the lady with the blue shirt", "blue shirt"])
    ]  # fmt: skip
    annotations = [{**_mdetr_box(k, k, [5.0, 6.0, 20.0, 30.0], [[0, span]]), "original_id": 1719310}
                   for k, span in enumerate([8, 10])]  # fmt: skip
    path = put(folder / "finetune_refcoco_val.json", _mdetr(images, annotations))
    put(folder / "train2014" / "COCO_train2014_000000581857.jpg", write_image(6))
    return Raw("mdetr_json", folder, 1, {"expressions": 2}, ["--annotations", str(path), "--split", "val"])


REFS = [
    {"sent_ids": [0, 1, 2], "file_name": "COCO_train2014_000000581857_16.jpg", "ann_id": 1719310, "ref_id": 0,
     "image_id": 581857, "split": "train", "category_id": 1, "sentences": [
         {"tokens": ["the", "lady"], "raw": "THE LADY WITH THE BLUE SHIRT", "sent_id": 0,
          "sent": "the lady with the blue shirt"},
         {"tokens": ["lady"], "raw": "lady w back to us", "sent_id": 1, "sent": "lady with back to us"},
         {"tokens": ["blue", "shirt"], "raw": "blue shirt", "sent_id": 2, "sent": "blue shirt"}]},
    {"sent_ids": [3], "file_name": "COCO_train2014_000000581857_17.jpg", "ann_id": 7, "ref_id": 1, "image_id": 581857,
     "split": "train", "category_id": 1, "sentences": [{"raw": "Man", "sent_id": 3, "sent": "man"}]},
    {"sent_ids": [4], "file_name": "COCO_train2014_000000000009_1.jpg", "ann_id": 8, "ref_id": 2, "image_id": 9,
     "split": "testA", "category_id": 1, "sentences": [{"raw": "cup", "sent_id": 4, "sent": "cup"}]},
]  # fmt: skip


def refcoco(folder: Path, refs: list[dict[str, Any]] = REFS) -> Raw:
    """Pickle of protocol 0, as Python 2 wrote it; one reference to an object that instances.json lacks."""
    lost = {**refs[0], "ann_id": 404, "ref_id": 9, "sentences": [{"sent": "nothing", "sent_id": 9}]}
    put(folder / "refcoco" / "refs(unc).p", pickle.dumps([*refs, lost], protocol=0))
    put(folder / "refcoco" / "instances.json", {
        "info": {}, "licenses": [], "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
        "images": [{"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "width": WIDTH, "height": HEIGHT}
                   for n in (581857, 9)],
        "annotations": [
            {"id": n, "image_id": image, "bbox": box, "category_id": 1, "area": 9.0, "iscrowd": 0, "segmentation": []}
            for n, image, box in (
                (7, 581857, [1, 2, 3, 4]), (1719310, 581857, [10.5, 6, 20, 30]), (8, 9, [0, 0, 5, 5])
            )
        ],
    })  # fmt: skip
    for number in (581857, 9):
        put(folder / "train2014" / f"COCO_train2014_{number:012d}.jpg", write_image(number % 97))
    return Raw("refcoco", folder, 1, {"expressions": 4}, dropped={"unknown object": 1})


def instances(names: list[str], classes: dict[int, str], **more: Any) -> dict[str, Any]:
    """Image i has i boxes; image 2's are one ordinary and one crowd."""
    boxes = [(1, [1.5, 2.5, 10.0, 10.0]), (2, [5.0, 5.0, 20.0, 20.0]), (2, [0.0, 0.0, 64.0, 48.0])]
    return {
        "info": {}, "licenses": [],
        "images": [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT, "license": 1,
                    "coco_url": f"http://x/{name}"} for i, name in enumerate(names)],
        "annotations": [{"id": 100 + k, "image_id": image, "category_id": sorted(classes)[k % len(classes)],
                         "bbox": box, "area": 50.0, "iscrowd": int(k == 2), "segmentation": [[1, 1, 2, 2, 3, 3]]}
                        for k, (image, box) in enumerate(boxes)],
        "categories": [{"id": i, "name": name, "supercategory": "thing"} for i, name in classes.items()],
    } | more  # fmt: skip


def coco_detection(folder: Path) -> Raw:
    """Category ids with gaps, a crowd, an image without objects, an unknown category, a resized image."""
    content = instances([f"{i:012d}.jpg" for i in range(4)], {1: "person", 13: "stop sign", 90: "toothbrush"})
    content["annotations"] += [
        {"id": 200, "image_id": 1, "category_id": 12, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0},
        {"id": 201, "image_id": 77, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0},
    ]
    put(folder / "annotations" / "instances_train2017.json", content)
    for i in range(3):
        size = (WIDTH // 2, HEIGHT // 2) if i == 1 else (WIDTH, HEIGHT)
        put(folder / "train2017" / f"{i:012d}.jpg", write_image(i, size=size))
    put(folder / "train2017" / f"{3:012d}.jpg", write_image(3, size=(HEIGHT, WIDTH)))  # turned: boxes cannot be right
    return Raw("coco_detection", folder, 3, {"boxes": 3}, dropped={
        "unknown category": 1, "annotations of an unlisted image": 1, "size mismatch": 1,
    })  # fmt: skip


def lvis(folder: Path) -> Raw:
    """v1 has no file_name; negative and not exhaustive categories."""
    content = instances(["a", "b", "c"], {1: "acorn", 2: "aerosol can", 1203: "zucchini"})
    for image, subset in zip(content["images"], ("train2017", "val2017", "val2017"), strict=True):
        del image["file_name"]
        image |= {"coco_url": f"http://images.cocodataset.org/{subset}/{image['id']:012d}.jpg",
                  "neg_category_ids": [1203], "not_exhaustive_category_ids": [1] if image["id"] else []}  # fmt: skip
        put(folder / subset / f"{image['id']:012d}.jpg", write_image(image["id"]))
    for category, frequency in zip(content["categories"], "rcf", strict=True):
        category |= {"frequency": frequency, "synset": "x.n.01", "synonyms": [], "def": "", "image_count": 1}
    put(folder / "lvis_v1_val.json", content)
    return Raw("lvis", folder, 3, {"boxes": 3}, ["--split", "val"])


def objects365(folder: Path) -> Raw:
    """Patch folders that the JSON names differently; a repeated box and float boxes past the border."""
    names = ["images/v1/patch8/objects365_v1_00420917.jpg", "images/v2/patch16/objects365_v2_00908726.jpg",
             "images/v2/patch50/objects365_v2_00999999.jpg"]  # fmt: skip
    content = instances(names, {1: "Person", 2: "Sneakers"})
    content["annotations"][1]["bbox"] = [50.2, 30.1, 20.0, 30.5]
    put(folder / "annotations" / "zhiyuan_objv2_train.json", content)
    for name in names[:2]:
        put(folder / "train" / Path(*Path(name).parts[-2:]), write_image(len(name)))
    return Raw("objects365", folder, 2, {"boxes": 1}, dropped={"missing image": 1}, noted={})


def objects365_tsv(folder: Path) -> Raw:
    """GLIP's files: base64 images, corner boxes, byte offsets of the rows."""
    rows, offsets, at = [], [], 0
    for i in range(3):
        row = f"objects365_v1_{i:08d}.jpg\t[1]\t{base64.b64encode(write_image(i)).decode()}\n"
        rows.append(row)
        offsets.append(f"{at}\n")
        at += len(row)
    labels = [
        [{"class": "Person", "rect": [1.0, 2.0, 30.0, 40.0]}, {"class": "Unheard of", "rect": [1, 1, 5, 5]}],
        [],
        [{"class": "Cup", "rect": [0, 0, 64, 48]}],
    ]
    put(folder / "images.tsv", "".join(rows))
    put(folder / "images.lineidx", "".join(offsets))
    put(folder / "train.label.tsv",
        "".join(f"objects365_v1_{i:08d}.jpg\t{json.dumps(entry)}\n" for i, entry in enumerate(labels)))  # fmt: skip
    put(folder / "object365_vgoiv6_class2ind.json", {"Person": 1, "Cup": 2})
    return Raw("objects365", folder, 3, {"boxes": 2}, ["--variant", "tsv"], dropped={"unknown category": 1})


def odinw(folder: Path) -> Raw:
    """A Roboflow export: folder names with blanks and dots, `valid`, the super-category as category 0."""
    folder = folder / "Aquarium Combined.v2-raw-1024.coco"
    names = ["IMG_1_jpg.rf.0a1b.jpg", "IMG_2_jpg.rf.2c3d.jpg", "IMG_3_jpg.rf.4e5f.jpg"]
    classes = [{"id": 0, "name": "creatures", "supercategory": "none"}] + [
        {"id": i, "name": name, "supercategory": "creatures"} for i, name in ((1, "fish"), (2, "jellyfish"))
    ]
    put(
        folder / "valid" / "_annotations.coco.json",
        instances(names, {1: "fish", 2: "jellyfish"}, categories=classes),
    )
    for i, name in enumerate(names):
        put(folder / "valid" / name, write_image(i))
    return Raw("odinw", folder, 3, {"boxes": 3}, ["--split", "val"])
