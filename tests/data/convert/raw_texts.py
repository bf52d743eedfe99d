"""Raw folders of captions, questions and sentences."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from raw_common import HEIGHT, TRUNCATED, WIDTH, Raw, put, write_image


def coco_karpathy(folder: Path) -> Raw:
    """Five images of two folders and three splits; a grey and a CMYK JPEG, one truncated, one absent."""
    images = []
    plan = [(number, "train", "train2014") for number in (9, 25, 30, 34, 36)]
    plan += [(42, "restval", "val2014"), (73, "val", "val2014"), (74, "test", "val2014")]
    for imgid, (number, split, subset) in enumerate(plan):
        name = f"COCO_{subset}_{number:012d}.jpg"
        texts = [f"Caption {k} of image {number}." for k in range(5)]
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
            9: write_image(9, mode="L"),
            25: write_image(25, mode="CMYK"),
            30: write_image(30, TRUNCATED),
        }.get(number, write_image(number))
        if number != 36:
            put(folder / subset / name, data)
    put(folder / "karpathy" / "dataset_coco.json", {"images": images, "dataset": "coco"})
    return Raw("coco_captions", folder, 3, {"captions": 15},
               dropped={"broken image": 1, "missing image": 1, "empty text": 1})  # fmt: skip


def coco_plain(folder: Path) -> Raw:
    """captions_val2017.json: annotations of an image are not neighbours, some are not ASCII."""
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
        put(folder / "val2017" / image["file_name"], write_image(image["id"]))
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
        put(folder / "flickr30k-images" / image["filename"], write_image(image["imgid"]))
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
    """Two folders of images; negative coordinates, boxes outside, no area, repeated and empty phrases."""
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
    put(folder / "images" / "VG_100K" / "1.jpg", write_image(1))
    put(folder / "images" / "VG_100K_2" / "2.jpg", write_image(2))
    put(folder / "images" / "VG_100K" / "2335991.jpg", write_image(3, TRUNCATED))
    return Raw(
        "visual_genome",
        folder,
        2,
        {"captions": 6},
        dropped={"no regions": 1, "broken image": 1, "box outside the image": 1, "box without area": 1,
                 "empty text": 1},
        noted={"box clipped to the image": 1, "repeated text, boxes joined": 1},
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
    put(folder / "VG_100K" / "4.jpg", write_image(4))
    options = ["--variant", "questions", "--answers", str(folder / "answers.json")]
    dropped = {"answer not in the vocabulary": 1, "no questions": 1}
    return Raw("visual_genome", folder, 1, {"questions": 2}, options, dropped=dropped)


def cc3m_img2dataset(folder: Path) -> Raw:
    """img2dataset's file output: dead links, an HTML page, a GIF, three copies of a "not available" image."""
    images = [
        write_image(0),
        write_image(1, "PNG"),
        b"<html>gone</html>",
        write_image(3, "GIF"),
        *[write_image(99)] * 3,
        None,
    ]
    rows = []
    for row, data in enumerate(images):
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
        "not fetched": 1, "not an image": 1, "unsupported format": 1, "placeholder image": 3,
    })  # fmt: skip


def cc3m_tars(folder: Path) -> Raw:
    """img2dataset's webdataset output."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for row in range(3):
            members = [("json", json.dumps({"caption": f"person {row}", "status": "success"}).encode())]
            if row != 1:
                members.append(("jpg", write_image(row)))
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
        put(folder / "images_train" / "0000" / f"{row:07d}", write_image(row))
    return Raw("cc3m", folder, 2, {"captions": 2}, dropped={"missing image": 1})


def sbu(folder: Path) -> Raw:
    """The re-released list and ViLT's tree without annot.json: images are found by row number."""
    put(folder / "sbu-captions-all.json", {
        "image_urls": [f"http://static.flickr.com/{i}.jpg" for i in range(4)],
        "user_ids": [str(i) for i in range(4)],
        "captions": ["Cats &amp; dogs", "Über den Wolken", "Deleted", "a" * 900],
    })  # fmt: skip
    for row in (0, 1, 3):
        put(folder / "images_train" / "0000" / f"{row:07d}.jpg", write_image(row))
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
        put(folder / "images" / image["file_name"], write_image(image["id"]))
    return Raw("nocaps", folder, 2, {"captions": 20})


def vqav2(folder: Path) -> Raw:
    """Three train images; "net" and "2" (as "two") are frequent enough to be labels, "zebra" is not."""

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
        put(folder / "train2014" / f"COCO_train2014_{number:012d}.jpg", write_image(number))
    put(folder / "val2014" / "COCO_val2014_000000000042.jpg", write_image(42))
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
    put(folder37 / "train-10171-0-img0.png", write_image(1, "PNG", "RGBA"))
    put(folder37 / "train-10171-0-img1.png", write_image(2))
    put(folder37 / "train-1146-3-img0.png", write_image(3, "PNG"))
    put(folder37 / "train-1146-3-img1.png", write_image(4, "GIF"))
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
        put(folder / "flickr30k-images" / f"{name}.jpg", write_image(int(name) % 100))
    return Raw("snli_ve", folder, 2, {"hypotheses": 3}, dropped={"no gold label": 1})
