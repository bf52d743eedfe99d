"""Every converter on a small folder in the official layout, dirt included: what comes out, to the last count."""

import json
import re
import sys
from pathlib import Path

import pytest

from fiber.cli.shards import names, reader
from fiber.data.records import validate_record
from fiber.data.shards import ShardSet

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parents[3] / "tools")]
import raw

import make_shards


def convert(made: raw.Raw, out: Path, capsys, *more: str) -> tuple[dict, dict[str, dict]]:
    """(summary, image id -> record)."""
    assert make_shards.main(made.command(out, *more)) == 0, capsys.readouterr().err
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    shards = ShardSet(out)
    return summary, {shards.record(i)["image_id"]: shards.record(i) for i in range(len(shards))}


def counts(reasons: dict[str, dict]) -> dict[str, int]:
    return {reason: found["count"] for reason, found in reasons.items()}


@pytest.mark.parametrize("name", raw.BUILDERS)
def test_official_layout(name, tmp_path, capsys):
    made = raw.build(name, tmp_path / "raw")
    summary, records = convert(made, tmp_path / "out", capsys)
    assert summary["samples"] == made.samples == len(records)
    assert summary["annotations"] == made.annotations
    assert counts(summary["dropped"]) == made.dropped
    assert counts(summary["noted"]) == made.noted
    lines = [json.loads(line) for line in (tmp_path / "out" / "drops.jsonl").read_text().splitlines()]
    assert len(lines) == sum(made.dropped.values()) + sum(made.noted.values())

    shards = ShardSet(tmp_path / "out")
    known = {category["id"] for category in shards.categories} or None
    for i in range(len(shards)):
        sample = shards.read(i)
        validate_record(sample.record, known)
        assert "." not in sample.key
    assert shards.verify() == []
    assert shards.info["provenance"]["converter"] == made.dataset
    assert shards.info["licence"]


def test_a_bad_row_of_a_list_costs_itself_alone(tmp_path, capsys):
    """Rows keep their numbers, by which images are found."""
    made = raw.build("sbu", tmp_path / "raw")
    rows = ["Cats\thttp://0", "no tab", "Deleted\thttp://2", "Dogs\thttp://3"]
    (made.folder / "Train_GCC-training.tsv").write_text("\n".join(rows) + "\n")
    command = raw.Raw("cc3m", made.folder, 2, {"captions": 2}, ["--images", str(made.folder / "images_train")])
    summary, records = convert(command, tmp_path / "out", capsys)
    assert {key: [c["text"] for c in record["captions"]] for key, record in records.items()} == {
        "cc3m_0000000": ["Cats"], "cc3m_0000003": ["Dogs"]
    }  # fmt: skip
    assert counts(summary["dropped"]) == {"row malformed": 1, "missing image": 1}
    assert "line 2: 1 columns" in (tmp_path / "out/drops.jsonl").read_text()


IN_JSON = ("coco_karpathy", "coco_plain", "flickr30k", "visual_genome", "visual_genome_questions", "nocaps", "vqav2",
           "nlvr2", "snli_ve", "mdetr_flickr", "mdetr_refcoco", "refcoco", "coco_detection", "lvis",
           "objects365")  # fmt: skip


@pytest.mark.parametrize("name", IN_JSON)
def test_a_bad_entry_costs_itself_alone(name, tmp_path, capsys):
    made = raw.build(name, tmp_path / "raw")
    for path in made.folder.rglob("*.json*"):
        text = path.read_text()
        try:
            whole = json.loads(text)
        except ValueError:  # lines; the last as a broken download leaves it
            path.write_bytes(b'null\n{}\n{"a" 1}\n"\xff"\n' + text.encode() + b'{"Flickr30K_ID": "22')
            continue
        arrays = [whole] if isinstance(whole, list) else map(whole.get, ("images", "annotations", "questions"))
        for array in arrays:
            if array and isinstance(array[0], dict):
                array[:0] = [None, {}]
        path.write_text(json.dumps(whole))
    summary, records = convert(made, tmp_path / "out", capsys)
    assert (len(records), summary["annotations"]) == (made.samples, made.annotations)
    bad = {reason for reason in counts(summary["dropped"]) if reason.endswith("malformed")}
    assert bad
    assert counts(summary["dropped"]) | made.dropped == counts(summary["dropped"])


@pytest.fixture
def records(request, tmp_path, capsys):
    return convert(raw.build(request.param, tmp_path / "raw"), tmp_path / "out", capsys)[1]


def on(name: str):
    return pytest.mark.parametrize("records", [name], indirect=True)


@on("coco_karpathy")
def test_karpathy_texts_are_put_in_order_not_dropped(records):
    assert [c["text"] for c in records["coco_9"]["captions"]] == ["A man on a moped 9."] + [
        f"Caption {k} of image 9." for k in range(1, 5)
    ]
    assert set(records) == {"coco_9", "coco_25", "coco_34"}


@pytest.mark.parametrize(("split", "ids"), [("restval", {"coco_42"}), ("val", {"coco_73"}), ("test", {"coco_74"})])
def test_karpathy_splits_stay_apart(split, ids, tmp_path, capsys):
    made = raw.coco_karpathy(tmp_path / "raw")
    _, records = convert(made, tmp_path / "out", capsys, "--split", split)
    assert set(records) == ids


@on("coco_plain")
def test_plain_captions_are_joined_by_image_and_keep_unicode(records):
    assert [c["text"] for c in records["coco_285"]["captions"]] == [f"Ein Bär, {k} 熊 \U0001f43b." for k in range(3)]


@on("visual_genome")
def test_visual_genome_keeps_phrase_and_box_together(records):
    assert set(records) == {"vg_1", "coco_391895"}  # the second is a COCO image, by image_data.json
    record = records["vg_1"]
    shown = {c["text"]: [record["boxes"][b]["box"] for b in c["phrases"][0]["boxes"]] for c in record["captions"]}
    assert shown == {
        "the clock is green in colour": [[4, 5, 24, 18]],
        "shade is along the street": [[10, 10, 40, 40]],
        "a tree": [[0, 0, 9, 10], [40, 20, 50, 30]],
        "far above": [],
        "a flat thing": [],
    }
    assert all(c["phrases"][0]["span"] == [[0, len(c["text"])]] for c in record["captions"])


@on("visual_genome_questions")
def test_visual_genome_answers_are_normalised_into_the_vocabulary(records):
    questions = records["vg_4"]["questions"]
    assert [q["answers"] for q in questions] == [[{"answer": a, "score": 1.0}] for a in ("sailboats", "2")]
    assert questions[0]["raw_answers"] == ["Sailboats."] * 10


@on("sbu")
def test_sbu_rows_join_captions_and_images(records):
    assert records["sbu_0000000"]["captions"] == [{"text": "Cats & dogs"}]
    assert records["sbu_0000003"]["captions"] == [{"text": "a" * 900}]


@on("nocaps")
def test_nocaps_keeps_submission_id_and_domain(records):
    assert {i: (r["domain"], len(r["captions"])) for i, r in records.items()} == {
        "nocaps_0": ("in-domain", 10),
        "nocaps_1": ("out-domain", 10),
    }


def test_vqa_vocabulary_and_soft_targets(tmp_path, capsys):
    made = raw.vqav2(tmp_path / "raw")
    _, records = convert(made, tmp_path / "train", capsys)
    # Train says "two" 10 times (counted as "2"), "net" 10 times, "zebra" once; val adds one "Two.".
    assert ShardSet(tmp_path / "train").answers == ["2", "net"]
    targets = {q["id"]: q["answers"] for r in records.values() for q in r["questions"]}
    assert targets[9001] == [{"answer": "net", "score": 1.0}]  # "Net" is another string: raw answers are counted
    assert targets[25000] == [{"answer": "2", "score": 0.6}]  # two annotators wrote "2"; three "two" do not count
    assert 9000 not in targets
    # Val keeps what has no target, because the official score counts every question.
    summary, val = convert(made, tmp_path / "val", capsys, "--split", "val")
    assert counts(summary["noted"]) == {"no answer in the vocabulary": 1}
    (question,) = val["coco_42"]["questions"]
    assert "answers" not in question
    assert question["raw_answers"] == ["Two."] * 10
    assert question["answer_type"] == "other"


def test_vqa_takes_a_ready_vocabulary_from_shards(tmp_path, capsys):
    made = raw.vqav2(tmp_path / "raw")
    convert(made, tmp_path / "train", capsys)
    (tmp_path / "raw" / "v2_mscoco_train2014_annotations.json").unlink()
    assert make_shards.main(made.command(tmp_path / "x", "--split", "val")) == 1
    assert "answer vocabulary needs the annotations of train and val" in capsys.readouterr().err
    convert(made, tmp_path / "val", capsys, "--split", "val", "--answers", str(tmp_path / "train"))
    assert ShardSet(tmp_path / "val").answers == ["2", "net"]


@on("nlvr2")
def test_nlvr2_groups_sentences_of_a_pair_and_parses_labels(records):
    record = records["nlvr2_train-10171-0"]
    assert record["statements"] == [
        {"id": "train-10171-0-0", "text": "The left one is a dog.", "label": True},
        {"id": "train-10171-0-1", "text": "No dog at all.", "label": False},
    ]
    assert record["images"] == [{"width": raw.WIDTH, "height": raw.HEIGHT}] * 2


@on("snli_ve")
def test_snli_ve_uses_the_hypothesis_only(records):
    assert [(h["text"], h["label"]) for h in records["flickr_2248275918"]["hypotheses"]] == [
        ("A toddler sleeps.", "contradiction"),
        ("The office is his father's.", "neutral"),
    ]


@on("flickr30k_entities")
def test_entities_phrases_have_unshifted_boxes_by_chain(records):
    record = records["flickr_1000092795"]
    first, second = record["captions"]
    assert first["text"] == "Two guys with shaggy hair look on in the yard ."
    assert [(p["chain"], p["types"], first["text"][slice(*p["span"][0])], p["boxes"]) for p in first["phrases"]] == [
        ("1", ["people"], "Two guys", [0, 2]),
        ("2", ["bodyparts", "other"], "shaggy hair", [1]),
        ("8", ["scene"], "the yard", []),
    ]
    assert [(p["chain"], p["boxes"]) for p in second["phrases"]] == [("6", [0])]  # "it" (notvisual) is no phrase
    assert record["boxes"][0]["box"] == [1, 1, 30, 47]


@on("mdetr_flickr")
def test_mdetr_flickr_joins_captions_of_an_image(records):
    record = records["flickr_1000092795"]
    assert [entry["box"] for entry in record["boxes"]] == [[1, 2, 21, 32], [30, 2, 40, 12]]
    assert record["captions"] == [
        {"text": "Two guys with hair .",
         "phrases": [{"span": [[0, 8]], "boxes": [0, 1]}, {"span": [[14, 18]], "boxes": [0]}]},
        {"text": "Friends talk .", "phrases": [{"span": [[0, 7]], "boxes": [0]}]},
        {"text": "Sunny ."},
    ]  # fmt: skip


@on("mdetr_mixed")
def test_mdetr_mixed_keeps_spans_of_a_box_together(records):
    assert records["coco_581857"]["captions"][1]["phrases"] == [{"span": [[0, 4], [5, 17]], "boxes": [1]}]
    assert records["vg_2334951"]["boxes"] == [{"box": [33, 13, 64, 33]}]


@pytest.mark.parametrize(("variant", "ids"), [("vg", {"vg_2334951"}), ("coco", {"coco_581857"})])
def test_mdetr_mixed_with_and_without_coco(variant, ids, tmp_path, capsys):
    made = raw.mdetr_mixed(tmp_path / "raw")
    assert set(convert(made, tmp_path / "out", capsys, "--variant", variant)[1]) == ids


def test_mdetr_mixed_keeps_both_files_of_one_photograph(tmp_path, capsys):
    """Visual Genome's and COCO's: one image id, other annotations."""
    made = raw.mdetr_mixed(tmp_path / "raw")
    about = [{"image_id": 2334951, "width": 64, "height": 48, "coco_id": 581857}]
    (tmp_path / "raw" / "image_data.json").write_text(json.dumps(about))
    assert make_shards.main(made.command(tmp_path / "out")) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["samples"], summary["dropped"]) == (2, {})
    shards = ShardSet(tmp_path / "out")
    assert [shards.record(i)["image_id"] for i in range(2)] == ["coco_581857"] * 2


@on("mdetr_refcoco")
def test_mdetr_refcoco_becomes_expressions(records):
    record = records["coco_581857"]
    assert [(e["text"], e["box"], e["span"]) for e in record["expressions"]] == [
        ("the lady with the blue shirt", 0, [[0, 8]]),
        ("blue shirt", 0, [[0, 10]]),
    ]
    assert record["boxes"] == [{"box": [5, 6, 25, 36]}]


@on("refcoco")
def test_refcoco_uses_the_cleaned_sentence_and_the_object_box(records):
    record = records["coco_581857"]
    assert [(e["text"], record["boxes"][e["box"]]["box"]) for e in record["expressions"]] == [
        ("the lady with the blue shirt", [10.5, 6, 30.5, 36]),
        ("lady with back to us", [10.5, 6, 30.5, 36]),
        ("blue shirt", [10.5, 6, 30.5, 36]),
        ("man", [1, 2, 4, 6]),
    ]


def test_refcoco_never_runs_a_pickle(tmp_path, capsys):
    made = raw.refcoco(tmp_path / "raw")
    path = tmp_path / "raw" / "refcoco" / "refs(unc).p"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    assert make_shards.main(made.command(tmp_path / "out")) == 1
    assert "not a pickle of plain data: it wants to build os.system" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@on("coco_detection")
def test_coco_keeps_ids_crowds_and_empty_images(records):
    assert records["coco_0"]["boxes"] == []
    crowd = records["coco_2"]["boxes"][1]
    assert crowd == {"box": [0, 0, 64, 48], "category": 90, "crowd": True, "area": 50.0, "id": 102}
    # The folder holds this image at half its annotated size: boxes and area follow.
    assert records["coco_1"]["boxes"] == [{"box": [0.75, 1.25, 5.75, 6.25], "category": 1, "area": 12.5, "id": 100}]


def test_coco_test_dev_has_images_and_classes_but_no_boxes(tmp_path, capsys):
    made = raw.coco_detection(tmp_path / "raw")
    content = json.loads((made.folder / "annotations" / "instances_train2017.json").read_text())
    raw.put(made.folder / "annotations" / "image_info_test-dev2017.json",
            {key: content[key] for key in ("images", "categories")})  # fmt: skip
    (made.folder / "train2017").rename(made.folder / "test2017")
    summary, records = convert(made, tmp_path / "out", capsys, "--split", "test-dev")
    assert set(records) == {f"coco_{i}" for i in range(4)}
    assert not any("boxes" in record for record in records.values())
    assert [category["id"] for category in ShardSet(tmp_path / "out").categories] == [1, 13, 90]
    assert not summary.get("warnings")


@on("lvis")
def test_lvis_negative_and_not_exhaustive_categories(records):
    assert records["coco_0"]["negative_categories"] == [1203]
    assert "not_exhaustive_categories" not in records["coco_0"]
    assert records["coco_1"]["not_exhaustive_categories"] == [1]


def test_lvis_minival_is_the_val2017_part(tmp_path, capsys):
    made = raw.lvis(tmp_path / "raw")
    path = made.folder / "lvis_v1_val.json"
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps(content | {"images": [None, {"id": 7}, *content["images"]]})
    )  # bad ones cost themselves
    _, records = convert(made, tmp_path / "out", capsys, "--split", "minival")
    assert set(records) == {"coco_1", "coco_2"}
    assert [c["frequency"] for c in ShardSet(tmp_path / "out").categories] == ["r", "c", "f"]


@on("objects365_tsv")
def test_objects365_tsv_boxes_are_corners(records):
    assert records["objects365_v1_00000000"]["boxes"] == [{"box": [1, 2, 30, 40], "category": 1}]
    assert records["objects365_v1_00000001"]["boxes"] == []


def test_objects365_names_are_words_of_captions(tmp_path, capsys):
    made = raw.objects365(tmp_path / "json")
    path = made.folder / "annotations" / "zhiyuan_objv2_train.json"
    content = json.loads(path.read_text())
    content["categories"] += [{"id": 3, "name": "Noddles"}, {"id": 4, "name": "Formula 1 "}, {"id": 5, "name": "suv"}]
    raw.put(path, content)
    convert(made, tmp_path / "a", capsys)
    assert ShardSet(tmp_path / "a").categories == [
        {"id": 1, "name": "person", "original_name": "Person"},
        {"id": 2, "name": "sneakers", "original_name": "Sneakers"},
        {"id": 3, "name": "noodles", "original_name": "Noddles"},
        {"id": 4, "name": "formula 1", "original_name": "Formula 1 "},
        {"id": 5, "name": "suv"},
    ]
    # Of GLIP's list, labels in any spelling go to one class.
    made = raw.objects365_tsv(tmp_path / "tsv")
    raw.put(made.folder / "object365_vgoiv6_class2ind.json", {"Person": 1, "Cup": 2, "person": 3})
    _, records = convert(made, tmp_path / "b", capsys)
    assert [c["id"] for c in ShardSet(tmp_path / "b").categories] == [1, 2]
    assert records["objects365_v1_00000000"]["boxes"][0]["category"] == 1
    (made.folder / "object365_vgoiv6_class2ind.json").unlink()
    convert(made, tmp_path / "c", capsys)
    assert [c["name"] for c in ShardSet(tmp_path / "c").categories] == ["cup", "person", "unheard of"]


def test_odinw_drops_only_roboflows_empty_super_category(tmp_path, capsys):
    made = raw.odinw(tmp_path / "raw")
    convert(made, tmp_path / "a", capsys)
    assert ShardSet(tmp_path / "a").categories == [{"id": 1, "name": "fish"}, {"id": 2, "name": "jellyfish"}]
    # One's own data may count from 0: a used category 0 stays.
    path = made.folder / "valid" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 0
    raw.put(path, content)
    convert(made, tmp_path / "b", capsys)
    assert [c["id"] for c in ShardSet(tmp_path / "b").categories] == [0, 1, 2]


def test_odinw_few_shot_files(tmp_path, capsys):
    made = raw.odinw(tmp_path / "raw")
    content = json.loads((made.folder / "valid" / "_annotations.coco.json").read_text())
    content["images"] = content["images"][1:2]
    content["annotations"] = content["annotations"][:1]
    raw.put(made.folder / "train" / "fewshot_train_shot5_seed30.json", content)
    name = content["images"][0]["file_name"]
    raw.put(made.folder / "train" / name, raw.write_image(1))
    summary, _ = convert(made, tmp_path / "out", capsys, "--split", "train_5_30")
    assert (summary["samples"], summary["annotations"]) == (1, {"boxes": 1})


def test_no_image_of_a_class_is_passed_over_in_silence(tmp_path, capsys):
    for place in ("cat/a.jfif", "cat/b.jpg", "dog/a.PNG", "dog/b.heic", "dog/c.heif"):
        data = b"\0\0\0\x18ftypheic" if ".he" in place else raw.write_image(0)
        raw.put(tmp_path / "raw" / place, data)
    command = ["class_folders", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    assert make_shards.main(command) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["items"], summary["samples"], counts(summary["dropped"])) == (5, 3, {"not an image": 2})


def test_configurations_name_splits_that_converters_make():
    """`data/shards/SET/SPLIT` of every configuration, where SET is a converter's name."""
    named, known = set(), names()
    for path in sorted((Path(__file__).resolve().parents[3] / "configs").rglob("*.yaml")):
        named |= {(path.name, *pair) for pair in re.findall(r"data/shards/(\w+)/([\w-]+)", path.read_text())}
    named = {entry for entry in named if entry[1] in known}
    assert len(named) > 20
    assert [entry for entry in sorted(named) if entry[2] not in (*reader(entry[1]).SPLITS, "SET")] == []
