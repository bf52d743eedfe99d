"""Own pairs as they really lie about: splits in a column, tables without a header, texts in a folder."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from raw_common import put, write_image

from fiber.cli.main import main
from fiber.data.convert.pair_rows import named_split
from fiber.data.shards import ShardSet

ROWS = [("a.jpg", "one", "train"), ("b.jpg", "two", "valid"), ("a.jpg", "three", "train"), ("c.jpg", "four", "TEST")]
SPLITS = {"train": {"a.jpg": ["one", "three"]}, "val": {"b.jpg": ["two"]}, "test": {"c.jpg": ["four"]}}


def packed(source: Path, out: Path, *options: str) -> dict[str, dict[str, list[str]]]:
    """split -> image, without the name of the set -> texts."""
    assert main(["shards", "pairs", str(source), "--out", str(out), *options]) == 0
    found = {}
    for path in sorted(out.iterdir()):
        shards = ShardSet(path)
        records = [shards.record(i) for i in range(len(shards))]
        found[path.name] = {
            r["image_id"].removeprefix(f"{source.name}_"): [caption["text"] for caption in r["captions"]]
            for r in records
        }
    return found


def images(folder: Path, names: str = "abc") -> None:
    for number, name in enumerate(names):
        put(folder / f"{name}.jpg", write_image(number))


def drops(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "drops.jsonl").read_text().splitlines()
    return [(drop["reason"], drop["detail"]) for drop in map(json.loads, lines)]


def write_rows(folder: Path, kind: str, rows: list[tuple[str, str, str]]) -> None:
    """The rows as a file of a kind."""
    pad = "x" * 70_000  # as an image in it would be: what is looked for lies behind the beginning of the file
    entries = [{"image": image, "caption": text, "pad": pad, "split": split} for image, text, split in rows]
    if kind == "csv":
        put(folder / "all.csv", "split,image,caption\n" + "".join(f"{s},{i},{t}\n" for i, t, s in rows))
    elif kind == "jsonl":
        put(folder / "all.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
    elif kind == "list":
        put(folder / "all.json", entries)
    elif kind == "karpathy":  # one entry an image
        put(folder / "all.json", {"images": [
            {"filename": image, "sentences": [{"raw": t} for i, t, _ in rows if i == image],
             "pad": pad, "split": split}
            for image, split in dict.fromkeys((i, s) for i, _, s in rows)
        ]})  # fmt: skip
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        put(folder / "x", "")
        pq.write_table(pa.Table.from_pylist(entries), folder / "all.parquet", row_group_size=2)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "list", "karpathy", "parquet"])
def test_a_column_of_splits_divides_the_rows(kind, tmp_path):
    """What is marked as val or test is not trained on, in whatever kind of file it lies."""
    images(tmp_path / "set")
    write_rows(tmp_path / "set", kind, ROWS)
    assert packed(tmp_path / "set", tmp_path / "out") == SPLITS
    one = tmp_path / "one"
    assert main(["shards", "pairs", str(tmp_path / "set"), "--split", "val", "--out", str(one)]) == 0
    assert len(ShardSet(one)) == 1


@pytest.mark.parametrize("said", ["withheld", ""])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "list", "karpathy", "parquet"])
def test_a_row_of_an_unknown_split_is_counted_and_in_none(kind, said, tmp_path):
    images(tmp_path / "set")
    write_rows(tmp_path / "set", kind, [*ROWS[:2], ("c.jpg", "four", said)])
    found = packed(tmp_path / "set", tmp_path / "out")
    assert found == {"train": {"a.jpg": ["one"]}, "val": {"b.jpg": ["two"]}}
    for split in found:
        ((reason, detail),) = drops(tmp_path / "out" / split)
        assert (reason, detail) == ("unknown split", repr(said))


def test_a_row_without_a_split_among_others_is_in_none(tmp_path):
    images(tmp_path / "set")
    rows = [
        {"image": "a.jpg", "caption": "one", "split": "train"},
        {"image": "b.jpg", "caption": "two"},
        {"image": "c.jpg", "caption": "four", "split": "test"},
        {"image": "c.jpg", "split": "test"},
        7,
    ]
    put(tmp_path / "set/all.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert packed(tmp_path / "set", tmp_path / "out") == {"train": {"a.jpg": ["one"]}, "test": {"c.jpg": ["four"]}}
    reasons = {split: [reason for reason, _ in drops(tmp_path / "out" / split)] for split in ("train", "test")}
    assert reasons["train"] == ["unknown split", "entry malformed"]
    assert reasons["test"] == ["unknown split", "entry malformed", "entry malformed"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "karpathy"])
def test_what_karpathy_left_over_is_trained_on_and_nothing_else(kind, tmp_path):
    images(tmp_path / "set")
    write_rows(tmp_path / "set", kind, [ROWS[0], ("b.jpg", "two", "restval"), ROWS[3]])
    assert packed(tmp_path / "set", tmp_path / "out") == {
        "train": {"a.jpg": ["one"], "b.jpg": ["two"]},
        "test": {"c.jpg": ["four"]},
    }


def test_a_column_without_a_split_in_it_divides_nothing(tmp_path):
    images(tmp_path / "set")
    write_rows(tmp_path / "set", "csv", [(image, text, "wood") for image, text, _ in ROWS])
    assert packed(tmp_path / "set", tmp_path / "out") == {
        "train": {"a.jpg": ["one", "three"], "b.jpg": ["two"], "c.jpg": ["four"]}
    }


def test_split_names():
    said = {"train": "train", "Training ": "train", "restval": "train", "valid": "val", "dev": "val", "TEST": "test"}
    assert {value: named_split(value) for value in said} == said
    assert [named_split(value) for value in ("", "withheld", None, 3)] == [None] * 4


def test_images_inside_parquet_have_the_split_of_their_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    data = [write_image(i) for i in range(3)]
    put(tmp_path / "set/x", "")
    table = pa.table({"image": data, "text": ["one", "two", "three"], "split": ["train", "test", "train"]})
    pq.write_table(table, tmp_path / "set/all.parquet", row_group_size=2)
    found = packed(tmp_path / "set", tmp_path / "out", "--workers", "1")
    assert {split: list(texts.values()) for split, texts in found.items()} == {
        "train": [["one"], ["three"]],
        "test": [["two"]],
    }
    shards = ShardSet(tmp_path / "out/train")
    assert [shards.read(i).images[0][1] for i in range(2)] == [data[0], data[2]]


def test_a_table_in_each_split_folder_as_hugging_face_has_it(tmp_path):
    """metadata.csv beside its images; the same name in two splits is another image in each."""
    for number, split in enumerate(("train", "validation")):
        for image, name in enumerate("ab"):
            put(tmp_path / "set" / split / f"{name}.jpg", write_image(10 * number + image))
        put(tmp_path / "set" / split / "metadata.csv", f"file_name,text\na.jpg,{split} a\nb.jpg,{split} b\n")
    assert packed(tmp_path / "set", tmp_path / "out") == {
        "train": {"a.jpg": ["train a"], "b.jpg": ["train b"]},
        "val": {"a.jpg": ["validation a"], "b.jpg": ["validation b"]},
    }
    assert ShardSet(tmp_path / "out/val").read(0).images[0][1] == write_image(10)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.token", "a.jpg#0\t\"One\" dog .\na.jpg#1\t\" two, dogs\nb.jpg#0\tthree\n"),
        ("Flickr8k.token.txt", "a.jpg#0\t\"One\" dog .\na.jpg#1\t\" two, dogs\nb.jpg#0\tthree\n"),
        ("list.csv", 'a.jpg,"""One"" dog ."\na.jpg,""" two, dogs"\nb.jpg,three\n'),
        ("list.tsv", '\ufeffa.jpg\t"""One"" dog ."\na.jpg\t""" two, dogs"\nb.jpg\tthree\n'),
    ],
)  # fmt: skip
def test_two_columns_without_a_header(name, content, tmp_path):
    """Flickr's files of tokens have no quotes around texts, which have quotes of their own."""
    images(tmp_path / "set" / "images")
    put(tmp_path / "set" / name, content)
    found = packed(tmp_path / "set", tmp_path / "out")["train"]
    assert {image: [text.strip() for text in texts] for image, texts in found.items()} == {
        "a.jpg": ['"One" dog .', '" two, dogs'],
        "b.jpg": ["three"],
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a.jpg,3\nb.jpg,4\n", "the header 'a.jpg,3' must have a column of images"),  # classes, no texts
        (b"a.jpg,one,two\n", "the header"),
        ("image,caption\na.jpg,gr\u00fcn\n".encode("cp1252"), "not UTF-8 (perhaps Latin-1 or GBK): save it as UTF-8"),
        ("image,caption\na.jpg,gr\u00fcn\n".encode("utf-16"), "not UTF-8 (perhaps Latin-1 or GBK): save it as UTF-8"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_the_reason(content, said, tmp_path, capsys):
    images(tmp_path / "set")
    put(tmp_path / "set" / "list.csv", content)
    assert main(["shards", "pairs", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "list.csv" in line
    assert said in line


@pytest.mark.parametrize("texts", ["texts", "captions"])
@pytest.mark.parametrize("inner", ["", "train/"])
def test_texts_in_a_folder_of_their_own(texts, inner, tmp_path):
    images(tmp_path / "set" / inner / "images" / "x")
    for name in "ab":
        put(tmp_path / "set" / inner / texts / "x" / f"{name}.txt", f"text {name}")
    found = packed(tmp_path / "set", tmp_path / "out")["train"]
    assert list(found.values()) == [["text a"], ["text b"]]
    assert drops(tmp_path / "out/train") == [("no caption", "no c.txt beside it")]


@pytest.mark.parametrize("texts", ["", "texts"])
def test_a_text_whose_image_is_of_an_unknown_kind_or_gone_is_counted(texts: str, tmp_path: Path) -> None:
    source = tmp_path / "set"
    for split in ("train", "val"):
        inner = f"{texts and 'images'}/{split}".lstrip("/")
        put(source / inner / "a.jpg", write_image(0))
        put(source / inner / "b.heif", b"\0\0\0\x18ftypheic" + bytes(50))
        put(source / inner / "c.tga", write_image(1))
        for name in "abc":
            put(source / texts / split / f"{name}.txt", name)
    assert packed(source, tmp_path / "out") == {"train": {"a.jpg": ["a"]}, "val": {"a.jpg": ["a"]}}
    for split in ("train", "val"):
        found = drops(tmp_path / "out" / split)
        assert [reason for reason, _ in found] == ["not an image", "text without an image"]
        assert Path(found[1][1]).name == "c.txt"


def test_a_text_that_is_not_utf8_is_counted_and_none_is_changed(tmp_path):
    """Beside images and in tars: a byte order mark is no part of a text, and nothing is packed with letters lost."""
    said = {
        "a": "gr\u00fcn".encode("latin-1"),
        "b": "gr\u00fcn".encode("utf-8-sig"),
        "c": "gr\u00fcn".encode("utf-16"),
    }
    images(tmp_path / "set")
    for name, text in said.items():
        put(tmp_path / "set" / f"{name}.txt", text)
    assert packed(tmp_path / "set", tmp_path / "out") == {"train": {"b.jpg": ["gr\u00fcn"]}}
    assert [reason for reason, _ in drops(tmp_path / "out/train")] == ["text not in UTF-8"] * 2
    put(tmp_path / "tars" / "x", "")
    with tarfile.open(tmp_path / "tars" / "one.tar", "w") as tar:
        for file in sorted((tmp_path / "set").iterdir()):
            tar.add(file, file.name)
    found = packed(tmp_path / "tars", tmp_path / "from_tars")["train"]
    assert list(found.values()) == [["gr\u00fcn"]]
    assert ["is not in UTF-8" in detail for _, detail in drops(tmp_path / "from_tars/train")] == [True, True]


@pytest.mark.parametrize("given", ["folder", "file"])
def test_an_object_of_images_and_texts(given, tmp_path):
    folder = tmp_path / "set"
    images(folder / "images")
    put(folder / "val.json", "\ufeff" + json.dumps({"a.jpg": ["one", "three"], "b.jpg": "two", "d.jpg": "gone"}))
    put(folder / "sizes.json", {"images": 3, "a.jpg": 1})  # other JSON beside it is no text
    source = folder if given == "folder" else folder / "val.json"
    found = packed(source, tmp_path / "out", *(() if given == "folder" else ("--images", str(folder / "images"))))
    found = {key.removeprefix("set_"): texts for key, texts in found["val"].items()}
    assert found == {"a.jpg": ["one", "three"], "b.jpg": ["two"]}
    assert [reason for reason, _ in drops(tmp_path / "out/val")] == ["missing image"]


@pytest.mark.parametrize("kind", ["csv", "coco"])
def test_an_image_that_is_missing_is_not_replaced_by_its_namesake(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "set"
    put(source / "a/1.png", write_image(1, "PNG"))
    names = ["a/1.png", "b/1.png"]
    if kind == "csv":
        put(source / "list.csv", "image,caption\n" + "".join(f"{name},text of {name}\n" for name in names))
    else:
        entries = [{"id": n, "file_name": name} for n, name in enumerate(names)]
        captions = [{"id": n, "image_id": n, "caption": f"text of {name}"} for n, name in enumerate(names)]
        put(source / "captions.json", {"images": entries, "annotations": captions})
    assert packed(source, tmp_path / "out") == {"train": {"a/1.png": ["text of a/1.png"]}}
    assert [reason for reason, _ in drops(tmp_path / "out/train")] == ["missing image"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "list", "parquet"])
def test_a_file_that_another_row_names_is_no_image_of_this_one(kind: str, tmp_path: Path) -> None:
    """Nor of two rows that spell it in two ways, neither of them the disk's."""
    source = tmp_path / "set"
    put(source / "1.png", write_image(1, "PNG"))
    put(source / "b.jpg", write_image(2))
    put(source / "c.jpg", write_image(3))
    texts = {"1.jpg": "a dog", "1.png": "a cat", "b.JPG": "a car", "b.jpg": "a bus", "C.jpg": "a cup", "c.JPG": "tea"}
    write_rows(source, kind, [(name, text, "train") for name, text in texts.items()])
    assert packed(source, tmp_path / "out")["train"] == {"1.png": ["a cat"], "b.jpg": ["a bus"], "C.jpg": ["a cup"]}
    found = sorted(reason for reason, _ in drops(tmp_path / "out/train"))
    assert found == ["file listed more than once", "missing image", "missing image"]


def test_an_image_of_val_is_not_looked_for_in_train(tmp_path: Path) -> None:
    """Unless a column says of which split a row is: then folders may be divided otherwise."""
    source = tmp_path / "set"
    images(source / "train", "ab")
    images(source / "val", "c")
    put(source / "train.csv", "image,caption\na.jpg,one\nb.jpg,two\n")
    put(source / "val.csv", "image,caption\nc.jpg,three\nb.jpg,four\n")
    divided = packed(source, tmp_path / "out")
    assert divided == {"train": {"a.jpg": ["one"], "b.jpg": ["two"]}, "val": {"c.jpg": ["three"]}}
    for name in ("train", "val"):
        (source / f"{name}.csv").unlink()
    put(source / "all.csv", "image,caption,split\na.jpg,one,train\nb.jpg,two,test\nc.jpg,three,train\n")
    assert packed(source, tmp_path / "all") == {
        "train": {"a.jpg": ["one"], "c.jpg": ["three"]},
        "test": {"b.jpg": ["two"]},
    }


def test_spellings_of_a_path_are_one_image(tmp_path: Path) -> None:
    source = tmp_path / "set"
    images(source / "images", "ab")
    rows = [
        "images/a.jpg,one",
        "images\\a.jpg,two",
        "./images/b.jpg,three",
        " images/b.jpg ,four",
        "images/a.jpg,five",
    ]
    put(source / "list.csv", "\n".join(["image,caption", *rows]) + "\n")
    found = packed(source, tmp_path / "out")["train"]
    assert found == {"images/a.jpg": ["one", "two", "five"], "./images/b.jpg": ["three", "four"]}


@pytest.mark.parametrize("ending", ["tsv", "csv"])
def test_a_quote_at_the_beginning_of_a_text_is_part_of_it(ending: str, tmp_path: Path) -> None:
    """As in captions of the web, which nobody quoted; cells that are quoted, over lines too, stay what they were."""
    source, tab = tmp_path / "set", "\t" if ending == "tsv" else ","
    images(source, "abcdefg")
    rows = [
        ("a.jpg", '"The sea" by a painter'), ("b.jpg", '"The sea; by a painter'), ("c.jpg", "plain"),
        ("d.jpg", '"first line\nsecond ""line"""'), ("e.jpg", '"a ""word"""'), ("f.jpg", 'a 12" screen'),
        ("g.jpg", '"never closed'),
    ]  # fmt: skip
    put(source / f"list.{ending}", f"image{tab}caption\n" + "".join(f"{image}{tab}{text}\n" for image, text in rows))
    expected = ['"The sea" by a painter', '"The sea; by a painter', "plain", 'first line second "line"', 'a "word"',
                'a 12" screen', '"never closed']  # fmt: skip
    whole = {f"{name}.jpg": [text] for name, text in zip("abcdefg", expected, strict=True)}
    assert packed(source, tmp_path / "out") == {"train": whole}
    # rows of an image that do not lie together are read again, each at its place
    put(source / f"list.{ending}", (source / f"list.{ending}").read_text() + f"a.jpg{tab}once more\n")
    again = packed(source, tmp_path / "again")["train"]
    assert again == whole | {"a.jpg": [expected[0], "once more"]}


@pytest.mark.parametrize("has_val", [False, True])
def test_every_folder_of_pairs_is_read_or_said(
    has_val: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of a split, and one of none beside them: trained on, unless it may be a copy of the others."""
    source = tmp_path / "set"
    for number, folder in enumerate(("train_a", "train_b", "more", *["val"] * has_val)):
        put(source / folder / "1.jpg", write_image(number))
        put(source / folder / ("1.TXT" if folder == "train_b" else "1.txt"), folder)
    found = packed(source, tmp_path / "out")
    read = ("train_a", "train_b", *["more"] * (not has_val))
    assert found["train"] == {f"{folder}/1.jpg": [folder] for folder in read}
    assert found.get("val") == ({"1.jpg": ["val"]} if has_val else None)
    assert ("LEFT OUT: 1 in folders of no split" in "".join(capsys.readouterr())) == has_val


def test_texts_that_have_changed_are_no_finished_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "set"
    images(source, "a")
    put(source / "a.txt", "one")
    command = ["shards", "pairs", str(source), "--out", str(tmp_path / "out")]
    assert main(command) == main(command) == 0
    put(source / "a.txt", "two words")
    assert main(command) == 1
    assert "the source has changed since" in capsys.readouterr().err
    assert packed(source, tmp_path / "out", "--overwrite") == {"train": {"a.jpg": ["two words"]}}


def test_texts_of_a_folder_beside_images_are_found_from_within_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path / "set/images", "a")
    put(tmp_path / "set/captions/a.txt", "one")
    monkeypatch.chdir(tmp_path / "set")
    assert main(["shards", "pairs", ".", "--out", str(tmp_path / "out")]) == 0
    assert len(ShardSet(tmp_path / "out/train")) == 1


def test_karpathy_s_coco_names_folder_and_file(tmp_path: Path) -> None:
    source = tmp_path / "set"
    put(source / "val2014/a.jpg", write_image(0))
    entry = {
        "filepath": "val2014",
        "filename": "a.jpg",
        "sentences": [{"raw": "one"}, {"raw": "two"}],
        "split": "val",
    }
    put(source / "dataset_coco.json", {"images": [entry], "dataset": "coco"})
    assert packed(source, tmp_path / "out") == {"val": {"val2014/a.jpg": ["one", "two"]}}


def captions_of(folder: Path, ids: list[int], more: list[Any]) -> Path:
    """COCO's captions of a.jpg, b.jpg and c.jpg."""
    images(folder)
    entries = [{"id": number, "file_name": f"{name}.jpg"} for number, name in zip(ids, "abc", strict=True)]
    texts = [{"image_id": number, "caption": f"text {number}"} for number in ids]
    put(folder / "captions.json", {"images": entries, "annotations": [*more, *texts]})
    return folder


def test_one_bad_entry_of_coco_captions_costs_itself(tmp_path: Path) -> None:
    source = captions_of(tmp_path / "set", [0, 1, 2], [
        None, {"caption": "of no image"}, {"image_id": 1, "caption": 7}, {"image_id": 1}, {"image_id": 9},
    ])  # fmt: skip
    assert packed(source, tmp_path / "out") == {"train": {f"{x}.jpg": [f"text {i}"] for i, x in enumerate("abc")}}
    assert sorted(reason for reason, _ in drops(tmp_path / "out/train")) == [
        *2 * ["annotation malformed"], "annotations of an unlisted image", *2 * ["empty text"]
    ]  # fmt: skip


def test_an_image_id_that_comes_twice_gives_no_image_the_texts_of_another(tmp_path: Path, capsys) -> None:
    source = captions_of(tmp_path / "set", [0, 0, 2], [])
    assert main(["shards", "pairs", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "captions.json: image id 0 comes twice in 'images'" in capsys.readouterr().err


def test_an_image_of_two_lists_is_one_record(tmp_path: Path) -> None:
    source = tmp_path / "set"
    images(source, "ab")
    put(source / "captions.csv", "image,caption\na.jpg,one\nb.jpg,two\n")
    put(source / "captions.jsonl", '{"image": "a.jpg", "caption": "one"}\n')
    assert packed(source, tmp_path / "out") == {"train": {"a.jpg": ["one"], "b.jpg": ["two"]}}
    assert [reason for reason, _ in drops(tmp_path / "out/train")] == ["image listed in another file, too"]


def test_a_folder_that_img2dataset_wrote_is_not_fetched_again(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    source = tmp_path / "set"
    put(source / "00000/0.jpg", write_image(0))
    put(source / "00000/0.txt", "one")
    pq.write_table(pa.table({"url": ["http://127.0.0.1:9/0.jpg"], "caption": ["one"]}), source / "00000.parquet")
    assert packed(source, tmp_path / "out") == {"train": {"00000/0.jpg": ["one"]}}


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_images_of_files_of_one_name_keep_ids_of_their_own(kind: str, tmp_path: Path) -> None:
    source, folders = tmp_path / "set", ("a_train", "b_train", "val")
    for number, folder in enumerate(folders):
        (source / folder).mkdir(parents=True)
        if kind == "tar":
            with tarfile.open(source / folder / "0.tar", "w") as tar:
                for end, data in (("jpg", write_image(number)), ("txt", folder.encode())):
                    member = tarfile.TarInfo(f"7.{end}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        else:
            pa = pytest.importorskip("pyarrow")
            import pyarrow.parquet as pq

            rows = {"image": [write_image(number)], "caption": [folder]}
            pq.write_table(pa.table(rows), source / folder / "0.parquet")
    inner = {"tar": "7", "parquet": "0000_000000"}[kind]
    names = {folder: f"{folder}_0_{inner}" for folder in folders}
    assert packed(source, tmp_path / "out") == {
        "train": {names[folder]: [folder] for folder in folders[:2]}, "val": {names["val"]: ["val"]}
    }  # fmt: skip


def test_tars_in_folders_of_no_split_are_read_and_packed_ones_are_not(tmp_path: Path) -> None:
    source = tmp_path / "set"
    put(source / "0.jpg", write_image(0))
    put(source / "0.txt", "one")
    for place in ("train/0.tar", "extra/1.tar"):
        (source / place).parent.mkdir()
        with tarfile.open(source / place, "w") as tar:
            for ending in ("jpg", "txt"):
                tar.add(source / f"0.{ending}", f"{Path(place).stem}{ending[0]}.{ending}".replace(ending[0], "", 1))
    found = packed(source, source / "packed")
    assert sorted(found["train"]) == ["0_0", "1_1"]
    assert packed(source, tmp_path / "out") == found


def test_links_are_followed_and_a_loop_of_them_ends(tmp_path: Path) -> None:
    source = tmp_path / "set"
    images(source / "more", "b")
    images(tmp_path / "elsewhere", "a")
    for folder in (source / "more", tmp_path / "elsewhere"):
        for image in list(folder.glob("*.jpg")):
            put(image.with_suffix(".txt"), image.stem)
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "more" / "up").symlink_to(source)
    (source / "itself").symlink_to(source / "itself")
    assert packed(source, tmp_path / "out") == {"train": {"linked/a.jpg": ["a"], "more/b.jpg": ["b"]}}
    # looked up by name, too
    put(source / "list.csv", "image,caption\n/other/machine/a.jpg,one\nb.jpg,two\n")
    found = packed(source, tmp_path / "named")["train"]
    assert found == {"/other/machine/a.jpg": ["one"], "b.jpg": ["two"]}
