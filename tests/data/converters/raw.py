"""Small raw folders in the exact layout of every data set, dirt included, made on the fly.

Each builder writes a folder and says what converting it must give. Used by the converter tests, and by any test that
needs shards of every kind: ``build(name, folder)``, then ``make_shards.main(made.command(out))``.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
TRUNCATED = "truncated"


@dataclass
class Raw:
    """A raw folder, how to convert it, and the result. dropped, noted: reason -> count."""

    dataset: str
    folder: Path
    samples: int
    annotations: dict[str, int]
    options: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)

    def command(self, out: Path, *more: str) -> list[str]:
        """Arguments of tools/make_shards.py."""
        return [self.dataset, "--raw", str(self.folder), "--out", str(out), *self.options, *more]


def picture(seed: int, kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """Encoded bytes of a random smooth picture; kind TRUNCATED: a JPEG cut short."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)
    out = io.BytesIO()
    image.save(out, "JPEG" if kind == TRUNCATED else kind)
    return out.getvalue()[: len(out.getvalue()) * 4 // 5] if kind == TRUNCATED else out.getvalue()


def put(path: Path, content: bytes | str | Any) -> Path:
    """Writes bytes, text, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------- captions


def coco_karpathy(folder: Path) -> Raw:
    """Five pictures of two folders and three splits; a grey and a CMYK JPEG, one truncated, one absent."""
    images = []
    plan = [(number, "train", "train2014") for number in (9, 25, 30, 34, 36)]
    plan += [(42, "restval", "val2014"), (73, "val", "val2014"), (74, "test", "val2014")]
    for imgid, (number, split, subset) in enumerate(plan):
        name = f"COCO_{subset}_{number:012d}.jpg"
        texts = [f"Caption {k} of picture {number}." for k in range(5)]
        texts[0] = f" A  man\non a moped {number}. "  # real ones have outer blanks, double blanks and newlines
        sentences = [
            {"tokens": text.split(), "raw": text, "imgid": imgid, "sentid": imgid * 5 + k}
            for k, text in enumerate(texts)
        ]
        if number == 25:
            sentences.append({"tokens": [], "raw": "  ", "imgid": imgid, "sentid": 999})
        images.append({"filepath": subset, "sentids": [s["sentid"] for s in sentences], "filename": name,
                       "imgid": imgid, "split": split, "sentences": sentences, "cocoid": number})  # fmt: skip
        data = {
            9: picture(9, mode="L"),
            25: picture(25, mode="CMYK"),
            30: picture(30, TRUNCATED),
        }.get(number, picture(number))
        if number != 36:
            put(folder / subset / name, data)
    put(folder / "karpathy" / "dataset_coco.json", {"images": images, "dataset": "coco"})
    return Raw("coco_captions", folder, 3, {"captions": 15},
               dropped={"broken picture": 1, "missing image": 1, "empty text": 1})  # fmt: skip


def coco_plain(folder: Path) -> Raw:
    """captions_val2017.json: annotations of a picture are not neighbours, some are not ASCII."""
    images = [
        {"license": 1, "file_name": f"{n:012d}.jpg", "id": n, "width": WIDTH, "height": HEIGHT} for n in (139, 285)
    ]
    captions = [
        {"image_id": number, "id": 10 * k + number, "caption": f"Ein Bär, {k} 熊 \U0001f43b."}
        for k in range(3)
        for number in (139, 285)
    ]
    put(folder / "annotations" / "captions_val2017.json", {"info": {"year": 2017}, "licenses": [{"id": 1}],
                                                            "images": images, "annotations": captions})  # fmt: skip
    for image in images:
        put(folder / "val2017" / image["file_name"], picture(image["id"]))
    return Raw("coco_captions", folder, 2, {"captions": 6}, ["--variant", "2017", "--split", "val"])


def flickr30k(folder: Path) -> Raw:
    images = [
        {
            "sentids": list(range(5 * i, 5 * i + 5)),
            "imgid": i,
            "sentences": [{"tokens": ["x"], "raw": f"Text {k} .", "imgid": i, "sentid": 5 * i + k} for k in range(5)],
            "split": split,
            "filename": f"{1000092795 + i}.jpg",
        }
        for i, split in enumerate(["train", "train", "val", "test"])
    ]
    put(folder / "karpathy" / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    for image in images:
        put(folder / "flickr30k-images" / image["filename"], picture(image["imgid"]))
    return Raw("flickr30k", folder, 2, {"captions": 10})


def _region(number: int, phrase: str, box: tuple[int, int, int, int], image: int) -> dict[str, Any]:
    x, y, width, height = box
    return {
        "region_id": number,
        "width": width,
        "height": height,
        "image_id": image,
        "phrase": phrase,
        "y": y,
        "x": x,
    }


def visual_genome(folder: Path) -> Raw:
    """Two folders of pictures; negative coordinates, boxes outside, no area, repeated and empty phrases."""
    regions = [
        _region(1, "the clock is green in colour", (4, 5, 20, 13), 1),
        _region(2, "shade is along the street ", (10, 10, 30, 30), 1),
        _region(3, "a tree", (-3, -2, 12, 12), 1),  # clipped
        _region(4, "a tree", (40, 20, 10, 10), 1),  # repeated: joins the caption of region 3
        _region(5, "far above", (3, -904, 5, 5), 1),  # outside
        _region(6, "a flat thing", (3, 4, 0, 5), 1),  # no area
        _region(7, " ", (3, 4, 5, 5), 1),
    ]
    put(folder / "annotations" / "region_descriptions.json", [
        {"id": 1, "regions": regions},
        {"id": 2, "regions": [_region(8, "a dog", (1, 1, 5, 5), 2)]},
        {"id": 3, "regions": []},
        {"id": 2335991, "regions": [_region(9, "unreadable", (1, 1, 5, 5), 2335991)]},
    ])  # fmt: skip
    put(folder / "annotations" / "image_data.json", [
        {"image_id": n, "url": "", "width": WIDTH, "height": HEIGHT, "coco_id": coco, "flickr_id": None}
        for n, coco in ((1, None), (2, 391895), (3, None), (2335991, None))
    ])  # fmt: skip
    put(folder / "images" / "VG_100K" / "1.jpg", picture(1))
    put(folder / "images" / "VG_100K_2" / "2.jpg", picture(2))
    put(folder / "images" / "VG_100K" / "2335991.jpg", picture(3, TRUNCATED))
    return Raw(
        "visual_genome",
        folder,
        2,
        {"captions": 6},
        dropped={"no regions": 1, "broken picture": 1, "box outside the picture": 1, "box without area": 1,
                 "empty text": 1},
        noted={"box clipped to the picture": 1, "repeated text, boxes joined": 1},
    )  # fmt: skip


def visual_genome_questions(folder: Path) -> Raw:
    def qa(number: int, question: str, answer: str) -> dict[str, Any]:
        return {
            "a_objects": [],
            "question": question,
            "image_id": 4,
            "qa_id": number,
            "answer": answer,
            "q_objects": [],
        }

    put(folder / "question_answers.json", [
        {"id": 4, "qas": [qa(1, "What is on the curtains?", "Sailboats."), qa(2, "How many?", "Two."),
                          qa(3, "Who?", "A sculptor of wax.")]},
        {"id": 5, "qas": []},
    ])  # fmt: skip
    put(folder / "answers.json", ["sailboats", "2"])
    put(folder / "VG_100K" / "4.jpg", picture(4))
    options = ["--variant", "questions", "--answers", str(folder / "answers.json")]
    dropped = {"answer not in the vocabulary": 1, "no questions": 1}
    return Raw("visual_genome", folder, 1, {"questions": 2}, options, dropped=dropped)


def cc3m_img2dataset(folder: Path) -> Raw:
    """img2dataset's file output: dead links, an HTML page, a GIF, three copies of a "not available" picture."""
    pictures = [picture(0), picture(1, "PNG"), b"<html>gone</html>", picture(3, "GIF"), *[picture(99)] * 3, None]
    rows = []
    for row, data in enumerate(pictures):
        name, caption = f"{row // 4:05d}/{row // 4:05d}{row % 4:04d}", f"actor {row} on the street - s corner ."
        rows.append(f"{caption}\thttp://host/{row}.jpg\n")
        status = "success" if data else "failed_to_download"
        about = {"caption": caption, "url": f"http://host/{row}.jpg", "key": name, "status": status,
                 "error_message": None if data else "HTTP Error 404: Not Found"}  # fmt: skip
        put(folder / "images_train" / f"{name}.json", about)
        if data:
            put(folder / "images_train" / f"{name}.txt", caption)
            put(folder / "images_train" / f"{name}.jpg", data)
    put(folder / "Train_GCC-training.tsv", "".join(rows))
    return Raw("cc3m", folder, 2, {"captions": 2}, dropped={
        "not fetched": 1, "not a picture": 1, "unsupported format": 1, "placeholder picture": 3,
    })  # fmt: skip


def cc3m_tars(folder: Path) -> Raw:
    """img2dataset's webdataset output."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for row in range(3):
            members = [("json", json.dumps({"caption": f"person {row}", "status": "success"}).encode())]
            if row != 1:
                members.append(("jpg", picture(row)))
            for extension, data in members:
                info = tarfile.TarInfo(f"00000000{row}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return Raw("cc3m", folder, 2, {"captions": 2}, dropped={"not fetched": 1})


def cc3m_vilt(folder: Path) -> Raw:
    """ViLT's tree: names without extension, paths of another machine."""
    rows = [[f"/private/home/gcc/images_train/0000/{row:07d}", f"a photo number {row}"] for row in range(3)]
    put(folder / "train_annot.json", rows)
    for row in range(2):
        put(folder / "images_train" / "0000" / f"{row:07d}", picture(row))
    return Raw("cc3m", folder, 2, {"captions": 2}, dropped={"missing image": 1})


def sbu(folder: Path) -> Raw:
    """The re-released list and ViLT's tree without annot.json: pictures are found by row number."""
    put(folder / "sbu-captions-all.json", {
        "image_urls": [f"http://static.flickr.com/{i}.jpg" for i in range(4)],
        "user_ids": [str(i) for i in range(4)],
        "captions": ["Cats &amp; dogs", "Über den Wolken", "Deleted", "a" * 900],
    })  # fmt: skip
    for row in (0, 1, 3):
        put(folder / "images_train" / "0000" / f"{row:07d}.jpg", picture(row))
    return Raw("sbu", folder, 3, {"captions": 3}, dropped={"missing image": 1})


def nocaps(folder: Path) -> Raw:
    images = [
        {"id": i, "file_name": f"09c863d76bcf6b0{i}.jpg", "open_images_id": f"09c863d76bcf6b0{i}", "width": WIDTH,
         "height": HEIGHT, "domain": domain, "coco_url": ""}
        for i, domain in enumerate(["in-domain", "out-domain"])
    ]  # fmt: skip
    captions = [{"image_id": i % 2, "id": i, "caption": f"A baby is standing {i}."} for i in range(20)]
    put(
        folder / "nocaps_val_4500_captions.json",
        {"licenses": [], "info": {}, "images": images, "annotations": captions},
    )
    for image in images:
        put(folder / "images" / image["file_name"], picture(image["id"]))
    return Raw("nocaps", folder, 2, {"captions": 20})


# ------------------------------------------------------------------------------------- questions and sentences


def vqav2(folder: Path) -> Raw:
    """Three train pictures; "net" and "2" (as "two") are frequent enough to be labels, "zebra" is not."""

    def annotation(question: int, answers: list[str], best: str) -> dict[str, Any]:
        return {
            "question_type": "what is this", "multiple_choice_answer": best, "image_id": question // 1000,
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(answers)],
            "answer_type": "other", "question_id": question,
        }  # fmt: skip

    info = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}, "data_subtype": "train2014"}
    numbers = [9, 25, 30]
    asked = [(number * 1000 + k) for k in range(7) for number in numbers]
    net, two = ["net"] * 5 + ["Net", "netting", "yes.", "a", "b"], ["two"] * 3 + ["2"] * 2 + ["some"] * 5
    annotations = [annotation(q, net if q % 2 else two, "net" if q % 2 else "two") for q in asked]
    annotations[0] = annotation(asked[0], ["zebra"] * 10, "zebra")
    questions = [{"image_id": q // 1000, "question": f"What is this {q}?", "question_id": q} for q in asked]
    put(folder / "v2_OpenEnded_mscoco_train2014_questions.json", {**info, "questions": questions})
    put(folder / "v2_mscoco_train2014_annotations.json", {**info, "annotations": annotations})
    val = [annotation(42000, ["Two."] * 10, "Two.")]
    put(folder / "v2_mscoco_val2014_annotations.json", {**info, "annotations": val})
    questions = [{"image_id": 42, "question": "How many?", "question_id": 42000}]
    put(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {**info, "questions": questions})
    for number in numbers[:2]:
        put(folder / "train2014" / f"COCO_train2014_{number:012d}.jpg", picture(number))
    put(folder / "val2014" / "COCO_val2014_000000000042.jpg", picture(42))
    return Raw("vqav2", folder, 2, {"questions": 13},
               dropped={"missing image": 1, "no answer in the vocabulary": 1})  # fmt: skip


def nlvr2(folder: Path) -> Raw:
    """Train with directories; two pairs, one with two sentences; a ".png" that is a JPEG, one that is a GIF."""
    rows = [
        {"validation": {"1": "True"}, "sentence": text, "left_url": "", "writer": "1", "label": label,
         "right_url": "", "synset": "dog", "query": "dogs", "identifier": identifier, "directory": 37}
        for identifier, text, label in (("train-10171-0-0", "The left one is a dog.", "True"),
                                        ("train-1146-3-0", "Two dogs.", "True"),
                                        ("train-10171-0-1", " No dog at all.", "False"),
                                        ("train-7-1-0", "Lost.", "False"))
    ]  # fmt: skip
    put(folder / "data" / "train.json", "".join(json.dumps(row) + "\n" for row in rows))
    folder37 = folder / "images" / "train" / "37"
    put(folder37 / "train-10171-0-img0.png", picture(1, "PNG", "RGBA"))
    put(folder37 / "train-10171-0-img1.png", picture(2))
    put(folder37 / "train-1146-3-img0.png", picture(3, "PNG"))
    put(folder37 / "train-1146-3-img1.png", picture(4, "GIF"))
    return Raw("nlvr2", folder, 2, {"statements": 3}, ["--reencode"], dropped={"missing image": 1})


def snli_ve(folder: Path) -> Raw:
    rows = [
        {"Flickr30K_ID": name, "annotator_labels": [label], "captionID": f"{name}.jpg#2", "gold_label": label,
         "pairID": f"{name}.jpg#2r1{k}", "sentence1": "A caption.", "sentence1_binary_parse": "", "sentence2": text}
        for k, (name, label, text) in enumerate([
            ("2248275918", "contradiction", "A toddler sleeps. "), ("4705552913", "entailment", "A man is outside."),
            ("2248275918", "neutral", "The office is his father's."), ("2248275918", "-", "Nobody agrees.")])
    ]  # fmt: skip
    put(folder / "snli_ve_train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for name in ("2248275918", "4705552913"):
        put(folder / "flickr30k-images" / f"{name}.jpg", picture(int(name) % 100))
    return Raw("snli_ve", folder, 2, {"hypotheses": 3}, dropped={"no gold label": 1})


# ------------------------------------------------------------------------------------- grounding

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
        put(folder / "flickr30k_images" / "train" / f"{name}.jpg", picture(int(name) % 100))
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
    """Sizes as strings; two captions of one picture share a box; a box of two phrases; a caption without boxes."""
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
    put(folder / "flickr30k" / "flickr30k_images" / "train" / "1000092795.jpg", picture(5))
    return Raw("mdetr_json", folder, 1, {"captions": 3}, ["--annotations", str(path)])


def mdetr_mixed(folder: Path) -> Raw:
    """A COCO and a Visual Genome picture; several captions, several spans a box; a box partly outside."""
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
    put(folder / "train2014" / "COCO_train2014_000000581857.jpg", picture(6))
    put(folder / "gqa" / "images" / "2334951.jpg", picture(7))
    return Raw("mdetr_json", folder, 2, {"captions": 3}, ["--annotations", str(path)],
               noted={"box clipped to the picture": 1})  # fmt: skip


def mdetr_refcoco(folder: Path) -> Raw:
    images = [
        {"file_name": "COCO_train2014_000000581857.jpg", "height": HEIGHT, "width": WIDTH, "id": k,
         "original_id": 581857, "caption": text, "dataset_name": "refcoco", "tokens_negative": []}
        for k, text in enumerate(["the lady with the blue shirt", "blue shirt"])
    ]  # fmt: skip
    annotations = [{**_mdetr_box(k, k, [5.0, 6.0, 20.0, 30.0], [[0, span]]), "original_id": 1719310}
                   for k, span in enumerate([8, 10])]  # fmt: skip
    path = put(folder / "finetune_refcoco_val.json", _mdetr(images, annotations))
    put(folder / "train2014" / "COCO_train2014_000000581857.jpg", picture(6))
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
        put(folder / "train2014" / f"COCO_train2014_{number:012d}.jpg", picture(number % 97))
    return Raw("refcoco", folder, 1, {"expressions": 4}, dropped={"unknown object": 1})


# ------------------------------------------------------------------------------------- detection


def _instances(names: list[str], classes: dict[int, str], **more: Any) -> dict[str, Any]:
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
    """Category ids with gaps, a crowd, a picture without objects, an unknown category, a resized picture."""
    content = _instances([f"{i:012d}.jpg" for i in range(4)], {1: "person", 13: "stop sign", 90: "toothbrush"})
    content["annotations"] += [
        {"id": 200, "image_id": 1, "category_id": 12, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0},
        {"id": 201, "image_id": 77, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0},
    ]
    put(folder / "annotations" / "instances_train2017.json", content)
    for i in range(3):
        size = (WIDTH // 2, HEIGHT // 2) if i == 1 else (WIDTH, HEIGHT)
        put(folder / "train2017" / f"{i:012d}.jpg", picture(i, size=size))
    put(folder / "train2017" / f"{3:012d}.jpg", picture(3, size=(HEIGHT, WIDTH)))  # turned: boxes cannot be right
    return Raw("coco_detection", folder, 3, {"boxes": 3}, dropped={
        "unknown category": 1, "annotations of an unlisted image": 1, "size mismatch": 1,
    })  # fmt: skip


def lvis(folder: Path) -> Raw:
    """v1 has no file_name; negative and not exhaustive categories."""
    content = _instances(["a", "b", "c"], {1: "acorn", 2: "aerosol can", 1203: "zucchini"})
    for image, subset in zip(content["images"], ("train2017", "val2017", "val2017"), strict=True):
        del image["file_name"]
        image |= {"coco_url": f"http://images.cocodataset.org/{subset}/{image['id']:012d}.jpg",
                  "neg_category_ids": [1203], "not_exhaustive_category_ids": [1] if image["id"] else []}  # fmt: skip
        put(folder / subset / f"{image['id']:012d}.jpg", picture(image["id"]))
    for category, frequency in zip(content["categories"], "rcf", strict=True):
        category |= {"frequency": frequency, "synset": "x.n.01", "synonyms": [], "def": "", "image_count": 1}
    put(folder / "lvis_v1_val.json", content)
    return Raw("lvis", folder, 3, {"boxes": 3}, ["--split", "val"])


def objects365(folder: Path) -> Raw:
    """Patch folders that the JSON names differently; a repeated box and float boxes past the border."""
    names = ["images/v1/patch8/objects365_v1_00420917.jpg", "images/v2/patch16/objects365_v2_00908726.jpg",
             "images/v2/patch50/objects365_v2_00999999.jpg"]  # fmt: skip
    content = _instances(names, {1: "Person", 2: "Sneakers"})
    content["annotations"][1]["bbox"] = [50.2, 30.1, 20.0, 30.5]
    put(folder / "annotations" / "zhiyuan_objv2_train.json", content)
    for name in names[:2]:
        put(folder / "train" / Path(*Path(name).parts[-2:]), picture(len(name)))
    return Raw("objects365", folder, 2, {"boxes": 2}, dropped={"missing image": 1}, noted={})


def objects365_tsv(folder: Path) -> Raw:
    """GLIP's files: base64 pictures, corner boxes, byte offsets of the rows."""
    rows, offsets, at = [], [], 0
    for i in range(3):
        row = f"objects365_v1_{i:08d}.jpg\t[1]\t{base64.b64encode(picture(i)).decode()}\n"
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
    return Raw("objects365", folder, 3, {"boxes": 3}, ["--variant", "tsv"], dropped={"unknown category": 1})


def odinw(folder: Path) -> Raw:
    """A Roboflow export: folder names with blanks and dots, `valid`, the super-category as category 0."""
    folder = folder / "Aquarium Combined.v2-raw-1024.coco"
    names = ["IMG_1_jpg.rf.0a1b.jpg", "IMG_2_jpg.rf.2c3d.jpg", "IMG_3_jpg.rf.4e5f.jpg"]
    classes = [{"id": 0, "name": "creatures", "supercategory": "none"}] + [
        {"id": i, "name": name, "supercategory": "creatures"} for i, name in ((1, "fish"), (2, "jellyfish"))
    ]
    put(
        folder / "valid" / "_annotations.coco.json",
        _instances(names, {1: "fish", 2: "jellyfish"}, categories=classes),
    )
    for i, name in enumerate(names):
        put(folder / "valid" / name, picture(i))
    return Raw("odinw", folder, 3, {"boxes": 3}, ["--split", "val"])


BUILDERS: dict[str, Callable[[Path], Raw]] = {
    build.__name__: build
    for build in (
        coco_karpathy, coco_plain, flickr30k, visual_genome, visual_genome_questions, cc3m_img2dataset, cc3m_tars,
        cc3m_vilt, sbu, nocaps, vqav2, nlvr2, snli_ve, flickr30k_entities, mdetr_flickr, mdetr_mixed, mdetr_refcoco,
        refcoco, coco_detection, lvis, objects365, objects365_tsv, odinw,
    )
}  # fmt: skip


def build(name: str, folder: Path) -> Raw:
    """The raw folder of that name under ``folder``."""
    return BUILDERS[name](folder)
