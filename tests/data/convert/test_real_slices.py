"""Real annotation slices, with images of the right size made up: what the converters say equals what others said.

The official tools' results are in the `expected*.json` beside the slices.
"""

import contextlib
import io
import json
import pickle
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transformers import RobertaTokenizerFast

from fiber.data.convert import flickr30k_entities, odinw, vqav2
from fiber.data.convert.answers import normalize_answer
from fiber.data.prompts import PromptBuilder, in_context
from fiber.data.records import clean_text
from fiber.data.shards import ShardSet

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parents[3] / "tools")]
import raw

import make_shards


@pytest.fixture(scope="module")
def real(shared) -> Path:
    return shared / "real"


def load(path: Path):
    return json.loads(path.read_text())


def convert(arguments: list, capsys) -> tuple[dict, ShardSet]:
    assert make_shards.main([str(a) for a in arguments]) == 0, capsys.readouterr().err
    out = arguments[arguments.index("--out") + 1]
    return json.loads(capsys.readouterr().out.splitlines()[-1]), ShardSet(out)


def records(shards: ShardSet) -> dict[str, dict]:
    return {shards.record(i)["image_id"]: shards.record(i) for i in range(len(shards))}


def plain(width: int, height: int) -> bytes:
    return raw.write_image(0, size=(width, height))


# ------------------------------------------------------------------------------------- Flickr30k Entities


def test_entities_parser_equals_the_official_one(real):
    folder = real / "flickr30k_entities"
    sentences, spans = load(folder / "expected_parse.json")["sentences"], load(folder / "expected_char_spans.json")
    seen = 0
    for name, expected in sentences.items():
        lines = (folder / "Sentences" / f"{name}.txt").read_text().splitlines()
        for line, sentence, places in zip(lines, expected, spans[name], strict=True):
            text, phrases = flickr30k_entities.parse_sentence(line.strip())
            assert text == sentence["sentence"]
            found = [
                {
                    "first_word_index": len(text[: p.start].split()),
                    "phrase": p.text,
                    "phrase_id": p.chain,
                    "phrase_type": list(p.types),
                }
                for p in phrases
            ]
            assert found == sentence["phrases"]
            assert [[p.start, p.end] for p in phrases] == places
            seen += len(found)
    assert seen > 150


def test_entities_boxes_are_the_official_ones_without_their_shift(real):
    folder = real / "flickr30k_entities"
    ((name, expected),) = load(folder / "expected_parse.json")["annotations"].items()
    size, objects = flickr30k_entities.parse_boxes(folder / "Annotations" / f"{name}.xml")
    assert size == (expected["width"], expected["height"])
    by_chain: dict[str, list] = {}
    for chains, box in objects:
        for chain in chains:
            by_chain.setdefault(chain, []).append([x - 1 for x in box])  # the official tool subtracts 1
    assert by_chain == expected["boxes"]


def test_entities_and_mdetr_agree(real, tmp_path, capsys):
    """MDETR's excerpt of the image whose XML and sentences are here: same caption, same spans."""
    source = real / "flickr30k_entities"
    folder = tmp_path / "raw"
    raw.put(folder / "Sentences/1000092795.txt", (source / "Sentences/1000092795.txt").read_text())
    raw.put(folder / "Annotations/1000092795.xml", (source / "Annotations/1000092795.excerpt.xml").read_text())
    raw.put(folder / "train.txt", "1000092795\n")
    raw.put(folder / "flickr30k-images/1000092795.jpg", plain(333, 500))
    _, shards = convert(["flickr30k_entities", "--raw", folder, "--out", tmp_path / "a"], capsys)
    annotations = real / "mdetr" / "final_flickr_separateGT_excerpt.json"
    _, mdetr = convert(["mdetr_json", "--raw", folder, "--annotations", annotations, "--out", tmp_path / "b"], capsys)
    ours, theirs = shards.record(0), mdetr.record(0)
    assert ours["image_id"] == theirs["image_id"] == "flickr_1000092795"
    assert ours["captions"][0]["text"] == theirs["captions"][0]["text"]
    spans = [phrase["span"] for phrase in ours["captions"][0]["phrases"]]
    assert spans[:3] == [[[0, 14]], [[20, 31]], [[40, 51]]]
    assert [p["span"] for p in theirs["captions"][0]["phrases"]] == spans[:3]
    assert theirs["boxes"] == [{"box": [180, 125, 206, 156]}]
    assert [ours["boxes"][b]["box"] for b in ours["captions"][0]["phrases"][0]["boxes"]] == [
        [159, 125, 219, 335],
        [197, 110, 261, 373],
    ]
    # Every entity of the excerpt has a span where the recorded list has it (chain 0 and boxless ones included).
    expected = load(source / "expected_char_spans.json")["1000092795"]
    assert [[p["span"][0] for p in c.get("phrases", [])] for c in ours["captions"]] == expected


def test_mdetr_mixed_excerpt(real, tmp_path, capsys):
    raw.put(tmp_path / "raw/train2014/COCO_train2014_000000581857.jpg", plain(427, 640))
    raw.put(tmp_path / "raw/gqa/images/2334951.jpg", plain(375, 500))
    annotations = real / "mdetr" / "final_mixed_train_excerpt.json"
    arguments = ["mdetr_json", "--raw", tmp_path / "raw", "--annotations", annotations, "--out", tmp_path / "out"]
    _, shards = convert(arguments, capsys)
    found = records(shards)
    (couple,) = found["coco_581857"]["captions"]
    assert [couple["text"][s:e] for s, e in couple["phrases"][0]["span"]] == ["couple"]
    assert found["coco_581857"]["boxes"][0]["box"] == pytest.approx([153.874, 258.56, 298.7718, 467.2], abs=1e-3)
    (man,) = found["vg_2334951"]["captions"]
    assert [man["text"][s:e] for s, e in man["phrases"][0]["span"]] == ["one", "man"]
    assert found["vg_2334951"]["boxes"] == [{"box": [33, 13, 247, 498]}]


# ------------------------------------------------------------------------------------- VQA, NLVR2, SNLI-VE, VG


def test_normalisation_rows(real):
    rows = load(real / "vqav2" / "normalisation_expected.json")["rows"]
    assert len(rows) > 2800
    assert [normalize_answer(text) for text, _, _ in rows] == [expected for _, expected, _ in rows]


def test_vocabulary_rule_on_official_files(real, tmp_path):
    """Every raw answer nine times: the vocabulary is the distinct normalised ones in order; eight are too few."""
    rows = load(real / "vqav2" / "normalisation_expected.json")["rows"]
    entries = [{"multiple_choice_answer": text} for text, _, _ in rows for _ in range(9)]
    path = raw.put(tmp_path / "a.json", {"info": {}, "annotations": entries})
    assert vqav2.build_vocabulary([path]) == list(dict.fromkeys(fiber for _, _, fiber in rows))

    labels = load(real / "vqav2" / "lxmert_trainval_label2ans_3129.json")
    assert len(labels) == 3129
    entries = [{"multiple_choice_answer": text} for text in labels for _ in range(5)]
    train = raw.put(tmp_path / "train.json", {"annotations": [*entries, *[{"multiple_choice_answer": "zzz"}] * 8]})
    val = raw.put(tmp_path / "val.json", {"annotations": entries[: 5 * 3000]})
    assert vqav2.build_vocabulary([train, val]) == labels[:3000]  # the last 129 are only five times there


def test_vqa_slice_gets_the_official_scores(real, tmp_path, capsys):
    source = real / "vqav2"
    folder = tmp_path / "raw"
    for name, official in (
        ("questions", "v2_OpenEnded_mscoco_train2014_questions.json"),
        ("annotations", "v2_mscoco_train2014_annotations.json"),
    ):
        raw.put(folder / official, (source / f"allennlp_train2014_{name}_slice.json").read_text())
    raw.put(folder / "train2014/COCO_train2014_000000458752.jpg", plain(640, 480))
    arguments = ["vqav2", "--raw", folder, "--out", tmp_path / "out"]
    labels = source / "lxmert_trainval_label2ans_3129.json"
    _, shards = convert([*arguments, "--answers", labels], capsys)
    assert len(shards.answers) == 3129
    questions = {q["id"]: q for q in shards.record(0)["questions"]}
    scores = {(i, a["answer"]): 100 * a["score"] for i, q in questions.items() for a in q["answers"]}
    checked = 0
    for case in load(source / "expected_accuracy.json")["cases"]:  # from the official evaluation script
        key = (case["question_id"], case["prediction"])
        if key in scores:
            assert scores[key] == pytest.approx(case["accuracy"])
            checked += 1
    assert checked == len(scores) >= 5
    assert [len(q["raw_answers"]) for q in questions.values()] == [10, 10, 10]


def test_nlvr2_dev_slice(real, tmp_path, capsys):
    source = real / "nlvr2"
    names = load(source / "dev_first500_image_hashes.json")
    raw.put(tmp_path / "raw/data/dev.json", (source / "dev_first500.json").read_text())
    for name in names:
        raw.put(tmp_path / "raw/dev" / name, b"\x89PNG\r\n\x1a\n" + raw.write_image(0, "PNG", size=(8, 8))[8:])
    arguments = ["nlvr2", "--raw", tmp_path / "raw", "--split", "dev", "--out", tmp_path / "out"]
    summary, shards = convert(arguments, capsys)
    assert (summary["samples"], summary["annotations"], summary["dropped"]) == (289, {"statements": 500}, {})
    rows = [json.loads(line) for line in (source / "dev_first500.json").read_text().splitlines()]
    expected = {row["identifier"]: (row["sentence"].strip(), row["label"] == "True") for row in rows}
    found = {s["id"]: (s["text"], s["label"]) for r in records(shards).values() for s in r["statements"]}
    assert found == {key: (clean_text(text), label) for key, (text, label) in expected.items()}
    # The images of all pairs are exactly those whose hashes the authors list.
    pairs = {image_id.removeprefix("nlvr2_") for image_id in records(shards)}
    assert {f"{pair}-img{side}.png" for pair in pairs for side in (0, 1)} == set(names)


@pytest.mark.parametrize(
    ("file", "split", "variant", "statements"),
    [("test1_first100", "test1", "all", 100), ("balanced_dev_first200", "dev", "balanced", 200)],
)
def test_nlvr2_other_files(file, split, variant, statements, real, tmp_path, capsys):
    lines = (real / "nlvr2" / f"{file}.json").read_text()
    raw.put(tmp_path / "raw.json", lines)
    pairs = {json.loads(line)["identifier"].rpartition("-")[0] for line in lines.splitlines()}
    for pair in pairs:
        for side in (0, 1):
            raw.put(tmp_path / "raw" / split / f"{pair}-img{side}.png", raw.write_image(0, size=(8, 8)))
    arguments = ["nlvr2", "--raw", tmp_path / "raw", "--annotations", tmp_path / "raw.json", "--split", split,
                 "--variant", variant, "--out", tmp_path / "out"]  # fmt: skip
    summary, _ = convert(arguments, capsys)
    assert (summary["samples"], summary["annotations"]) == (len(pairs), {"statements": statements})


def test_snli_ve_slice(real, tmp_path, capsys):
    text = (real / "snli_ve" / "allennlp_sample_pairs.jsonl").read_text()
    raw.put(tmp_path / "raw/snli_ve_test.jsonl", text)
    for name in ("2248275918", "402978771"):
        raw.put(tmp_path / f"raw/flickr30k-images/{name}.jpg", plain(50, 40))
    arguments = ["snli_ve", "--raw", tmp_path / "raw", "--split", "test", "--out", tmp_path / "out"]
    _, shards = convert(arguments, capsys)
    found = {h["id"]: (h["text"], h["label"]) for r in records(shards).values() for h in r["hypotheses"]}
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    assert found == {row["pairID"]: (row["sentence2"].strip(), row["gold_label"]) for row in rows}
    assert len(records(shards)["flickr_2248275918"]["hypotheses"]) == 15


def test_visual_genome_question_slice(real, tmp_path, capsys):
    source = real / "visual_genome" / "vg_question_answers_slice.json"
    raw.put(tmp_path / "raw/question_answers.json", source.read_text())
    for number in (4, 5):
        raw.put(tmp_path / f"raw/VG_100K/{number}.jpg", plain(50, 40))
    arguments = ["visual_genome", "--variant", "questions", "--raw", tmp_path / "raw", "--out", tmp_path / "out"]
    _, shards = convert(arguments, capsys)
    found = {q["question"]: q["answers"][0]["answer"] for r in records(shards).values() for q in r["questions"]}
    assert len(found) == 8
    assert found["What is on the couch?"] == "teddy bear"
    assert found["How are the chairs?"] == "empty"


def test_refcoco_reference(real, tmp_path, capsys):
    refs = load(real / "refer" / "refcoco_unc_ref0.json")
    made = raw.refcoco(tmp_path / "raw", refs)
    _, shards = convert(made.command(tmp_path / "out"), capsys)
    assert pickle.loads((tmp_path / "raw/refcoco/refs(unc).p").read_bytes())[:1] == refs
    record = records(shards)["coco_581857"]
    assert [(e["text"], e["id"]) for e in record["expressions"]] == [
        ("the lady with the blue shirt", 0),
        ("lady with back to us", 1),
        ("blue shirt", 2),
    ]
    roots = [[e["text"][slice(*span)] for span in e["span"]] for e in record["expressions"]]
    assert roots == [["the lady"], ["lady"], ["blue shirt"]]
    assert shards.info["provenance"]["root_phrases"].startswith(("spacy ", "rule"))
    assert {record["boxes"][e["box"]]["id"] for e in record["expressions"]} == {1719310}


# ------------------------------------------------------------------------------------- captions


def test_conceptual_captions_slice(real, tmp_path, capsys):
    """Google's own file, a third of the images gone as in life, in ViLT's tree."""
    source = real / "conceptual_captions" / "Validation_GCC-1.1.0-Validation_first1500.tsv"
    raw.put(tmp_path / "raw" / source.name, source.read_text())
    rows = [line.split("\t")[0] for line in source.read_text().splitlines()]
    data = [raw.write_image(i, size=(8, 8)) for i in range(1500)]
    for row in range(1500):
        if row % 3:
            raw.put(tmp_path / f"raw/images_val/{row // 1000:04d}/{row:07d}", data[row])
    arguments = ["cc3m", "--raw", tmp_path / "raw", "--split", "val", "--out", tmp_path / "out"]
    summary, shards = convert(arguments, capsys)
    assert summary["items"] == 1500
    assert summary["samples"] == 1000
    assert summary["dropped"]["missing image"]["count"] == 500
    listed = [json.loads(line) for line in (tmp_path / "out" / "drops.jsonl").read_text().splitlines()]
    assert [line["subject"] for line in listed] == [f"cc3m_{row:07d}" for row in range(0, 1500, 3)]
    found = records(shards)
    assert all(found[f"cc3m_{row:07d}"]["captions"] == [{"text": rows[row]}] for row in range(1500) if row % 3)


def test_coco_caption_slice(real, tmp_path, capsys):
    captions = load(real / "coco_caption" / "coco_val2014_captions_500_slice.json")
    images = [{"id": c["image_id"], "file_name": f"COCO_val2014_{c['image_id']:012d}.jpg"} for c in captions]
    raw.put(tmp_path / "raw/annotations/captions_val2014.json", {"images": images, "annotations": captions})
    for image in images:
        raw.put(tmp_path / "raw/val2014" / image["file_name"], raw.write_image(0, size=(8, 8)))
    arguments = ["coco_captions", "--variant", "2014", "--split", "val", "--raw", tmp_path / "raw"]
    summary, shards = convert([*arguments, "--out", tmp_path / "out"], capsys)
    assert (summary["samples"], summary["annotations"], summary["dropped"]) == (500, {"captions": 500}, {})
    found = {image_id: record["captions"][0]["text"] for image_id, record in records(shards).items()}
    assert found == {f"coco_{c['image_id']}": " ".join(c["caption"].split()) for c in captions}
    assert sum(c["caption"] != found[f"coco_{c['image_id']}"] for c in captions) >= 54


# ------------------------------------------------------------------------------------- detection


def as_coco(shards: ShardSet) -> COCO:
    """The records written back as COCO annotations."""
    images, annotations = [], []
    for record in records(shards).values():
        number = int(record["image_id"].removeprefix("coco_"))
        images.append({"id": number, "width": record["width"], "height": record["height"]})
        for entry in record["boxes"]:
            x0, y0, x1, y1 = entry["box"]
            annotations.append({"id": entry["id"], "image_id": number, "category_id": entry["category"],
                                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": entry["area"],
                                "iscrowd": int(entry.get("crowd", False))})  # fmt: skip
    truth = COCO()
    truth.dataset = {"images": images, "annotations": annotations, "categories": shards.categories}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def test_coco_slice_evaluates_as_officially(real, tmp_path, capsys):
    """Through shards and back, pycocotools gives the twelve official numbers."""
    source = real / "cocoapi"
    content = load(source / "instances_val2014_100.json")
    raw.put(tmp_path / "raw/annotations/instances_val2014.json", (source / "instances_val2014_100.json").read_text())
    for image in content["images"]:
        raw.put(tmp_path / "raw/val2014" / image["file_name"], plain(image["width"], image["height"]))
    arguments = ["coco_detection", "--variant", "2014", "--split", "val", "--raw", tmp_path / "raw"]
    summary, shards = convert([*arguments, "--out", tmp_path / "out"], capsys)
    assert (summary["samples"], summary["dropped"], summary["noted"]) == (100, {}, {})
    boxes = [entry for record in records(shards).values() for entry in record["boxes"]]
    assert len(boxes) == 839
    assert sum(entry.get("crowd", False) for entry in boxes) == 9
    truth = as_coco(shards)
    with contextlib.redirect_stdout(io.StringIO()):
        found = truth.loadRes(str(source / "instances_val2014_fakebbox100_results.json"))
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats.tolist() == pytest.approx(load(source / "expected.json")["bbox"], abs=1e-12)


def test_lvis_slice(real, tmp_path, capsys):
    path = real / "lvis" / "lvis_val_100.json"
    content = load(path)
    for image in content["images"]:
        subset, name = image["coco_url"].split("/")[-2:]
        raw.put(tmp_path / "raw" / subset / name, plain(image["width"], image["height"]))
    arguments = [
        "lvis",
        "--split",
        "val",
        "--annotations",
        path,
        "--raw",
        tmp_path / "raw",
        "--out",
        tmp_path / "out",
    ]
    summary, shards = convert(arguments, capsys)
    found = records(shards)
    assert (summary["samples"], summary["dropped"]) == (100, {})
    assert sum(len(r["boxes"]) for r in found.values()) == 977
    assert sum(not r["boxes"] for r in found.values()) == 7
    assert sum("not_exhaustive_categories" in r for r in found.values()) == 12
    assert Counter(c["frequency"] for c in shards.categories) == {"r": 454, "c": 461, "f": 315}
    by_image = {f"coco_{i['id']}": i["neg_category_ids"] for i in content["images"]}
    assert {i: r.get("negative_categories", []) for i, r in found.items()} == by_image
    boxes = {e["id"]: e for r in found.values() for e in r["boxes"]}
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert boxes[annotation["id"]]["box"] == [x, y, x + width, y + height]
        assert boxes[annotation["id"]]["category"] == annotation["category_id"]


def test_odinw_configurations(real, tmp_path, capsys):
    paths = sorted((real / "odinw").glob("*/*.yaml"))
    assert len(paths) == 49
    prompts = 0
    splits = ("train", "val", "test", *odinw.FEW_SHOT)
    for path in paths:
        section = odinw.load_config(path)
        assert all(odinw.registered(section, split)["ann_file"] for split in splits)
        if "minival" in section["TEST"]:
            assert odinw.registered(section, "val") == section["REGISTER"]["minival"]
            assert odinw.registered(section, "val_5_30") == section["REGISTER"]["minival_5_30"]
        given = yaml.safe_load(section["OVERRIDE_CATEGORY"])
        found = [{"id": entry["id"], "name": "of the file"} for entry in given]
        classes = odinw.named(found, section, prompts=False)
        assert classes == [{"id": entry["id"], "name": entry["name"]} for entry in given]
        if section.get("CAPTION_PROMPT"):
            prompts += 1
            said = [in_context(entry["name"]) for entry in odinw.named(found, section, prompts=True)]
            written = [tuple(entry.values()) for entry in yaml.safe_load(section["CAPTION_PROMPT"])]
            assert said == written  # prefix, name, suffix, to the character
    assert prompts == 4
    config = real / "odinw" / "odinw_35" / "Aquarium_Aquarium_Combined.v2-raw-1024.coco.yaml"
    entry = odinw.registered(odinw.load_config(config), "val")
    names = ["a.rf.1.jpg", "b.rf.2.jpg", "c.rf.3.jpg"]
    raw.put(tmp_path / entry["ann_file"], raw.instances(names, dict.fromkeys(range(1, 8), "creature")))
    for name in names:
        raw.put(tmp_path / entry["img_dir"] / name, raw.write_image(1))
    arguments = ["odinw", "--split", "val", "--raw", tmp_path, "--config", config]
    _, shards = convert([*arguments, "--variant", "names", "--out", tmp_path / "names"], capsys)
    fish = ["fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray"]
    assert [c["name"] for c in shards.categories] == fish
    assert shards.info["provenance"]["class_names"] == "names"
    _, shards = convert([*arguments, "--out", tmp_path / "prompts"], capsys)
    assert shards.info["provenance"]["class_names"] == "prompts"
    tokenizer = RobertaTokenizerFast.from_pretrained(real / "roberta_tokenizer")
    prompt = PromptBuilder(tokenizer).classes(shards.facts.names)
    assert prompt.text == (
        " fish. jellyfish. penguin , which is black and white. puffin with orange beaks . shark. starfish. "
        "stingray which is flat and round"
    )
    owned = [tokenizer.decode(prompt.ids[row]).strip() for row in prompt.token_map]
    assert owned == fish  # of "penguin , which is black and white" the penguin alone
