"""Own pairs wherever images and texts lie: in tables of any order, behind URLs, inside files, in tars of others."""

import base64
import csv
import http.server
import io
import json
import os
import pickle
import random
import sys
import tarfile
import threading
import tracemalloc
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from raw_common import put, write_image

from fiber.cli.inspect import verify
from fiber.cli.main import main
from fiber.data.convert import pair_images
from fiber.data.convert.by_image import ByImage
from fiber.data.convert.image_folder import ImageFolder
from fiber.data.convert.items import RawImage, UnusableItem
from fiber.data.convert.pair_images import is_base64, url_name
from fiber.data.convert.pair_rows import table
from fiber.data.convert.splits import sorted_names
from fiber.data.shards import ShardSet

Texts = dict[str, list[str]]


def run(source: Path, out: Path, *options: str, split: str = "train") -> Texts:
    """image_id -> texts of a split, in the order of the set."""
    assert main(["shards", "pairs", str(source), "--out", str(out), *options]) == 0
    return texts(ShardSet(out / split))


def texts(shards: ShardSet) -> Texts:
    records = [shards.record(i) for i in range(len(shards))]
    return {record["image_id"]: [caption["text"] for caption in record["captions"]] for record in records}


def refused(capsys, *command: str) -> str:
    capsys.readouterr()
    assert main(["shards", "pairs", *command]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def images(folder: Path, names: str = "abc") -> None:
    for number, name in enumerate(names):
        put(folder / f"{name}.jpg", write_image(number))


def test_a_text_beside_an_image_is_no_table_whatever_it_says(tmp_path):
    images(tmp_path / "set")
    for name, text in zip("abc", ("image, caption of a cat", "a dog", '{"captions": 1}'), strict=True):
        put(tmp_path / f"set/{name}.txt", text)
    (tmp_path / "set/a.jpg").rename(tmp_path / "set/a.JPG")
    put(tmp_path / "set/b.json", [{"image": "a.jpg", "caption": "a label tool's own"}])
    assert run(tmp_path / "set", tmp_path / "out") == {
        "set_a.JPG": ["image, caption of a cat"],
        "set_b.jpg": ["a dog"],
        "set_c.jpg": ['{"captions": 1}'],
    }


def test_names_are_sorted_as_bytes_in_little_memory():
    rng = random.Random(0)
    few = ["".join(rng.choice("ab/é木\udce9 .") for _ in range(rng.randrange(1, 9))) for _ in range(200)]
    assert list(sorted_names(iter(few))) == sorted(few, key=os.fsencode)
    assert list(sorted_names(iter(()))) == []
    tracemalloc.start()
    last = deque(sorted_names(f"image_{rng.randrange(10**9):09d}.jpg" for _ in range(200_000)), maxlen=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last[0].startswith("image_99")
    assert peak < 200_000 * 60  # names of Python take 72 bytes each, and 8 for their place


def test_rows_of_an_image_may_lie_anywhere(tmp_path):
    """Against a dictionary, over random tables with quotes, line ends in cells, a byte order mark and Unicode."""
    rng = random.Random(0)
    for trial in range(20):
        rows = [(f"{rng.choice('abcdé木')}{rng.randrange(3)}.jpg", rng.choice(['x "y"', "2\nlines", "a,b", "木"]))
                for _ in range(rng.randrange(1, 60))]  # fmt: skip
        grouped: Texts = {}
        for name, text in rows:
            grouped.setdefault(name, []).append(text)
        out = io.StringIO(newline="")
        csv.writer(out).writerows([("image", "caption"), *rows])
        path = put(tmp_path / f"{trial}.csv", ("\ufeff" * (trial % 2) + out.getvalue()).encode())
        found = ByImage(table(path, None, None))
        assert len(found) == len(grouped)
        assert [(row[0], row[1]) for row in found] == list(grouped.items())
        together = [(name, text) for name, texts in grouped.items() for text in texts]
        out = io.StringIO(newline="")
        csv.writer(out).writerows([("image", "caption"), *together])
        found = ByImage(table(put(tmp_path / f"{trial}_together.csv", out.getvalue().encode()), None, None))
        assert (len(found), [(row[0], row[1]) for row in found]) == (len(grouped), list(grouped.items()))
        path = put(tmp_path / f"{trial}.json", [{"img": name, "text": text} for name, text in rows])
        for line in rows[:1]:
            assert main(["shards", "pairs", str(path), "--out", str(tmp_path / f"o{trial}")]) == 1  # no such images
            assert line


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("results.csv", "image_name| comment_number| comment\na.jpg| 0| one\nb.jpg| 0| three\na.jpg| 1| two\n", []),
        ("x.tsv", "one\ta.jpg\nthree\tb.jpg\ntwo\ta.jpg\n", ["--image-column", "1", "--text-column", "0"]),
        ("captions.txt", "image,caption\na.jpg,one\nb.jpg,three\na.jpg,two\n", []),
        ("x.csv", "Photo,Alt\na.jpg,one\nb.jpg,three\na.jpg,two\n", ["--image-column", "photo"]),
        ("x.jsonl", '{"p": "a.jpg", "t": ["one", "two"]}\n{"p": "b.jpg", "t": "three"}\n',
         ["--image-column", "p", "--text-column", "t"]),
    ],
)  # fmt: skip
def test_columns_are_found_or_named(name, content, options, tmp_path):
    images(tmp_path / "mine" / "images", "ab")
    put(tmp_path / "mine" / name, content)
    found = run(tmp_path / "mine", tmp_path / "out", *options)
    assert {key: [text.strip() for text in value] for key, value in found.items()} == {
        "mine_a.jpg": ["one", "two"], "mine_b.jpg": ["three"]}  # fmt: skip


def test_splits_come_from_names_of_files_and_folders(tmp_path):
    images(tmp_path / "mine")
    put(tmp_path / "mine" / "train.csv", "image,caption\na.jpg,one\n")
    put(tmp_path / "mine" / "validation.csv", "image,caption\nb.jpg,two\n")
    assert run(tmp_path / "mine", tmp_path / "out") == {"mine_a.jpg": ["one"]}
    assert ShardSet(tmp_path / "out/val").info["split"] == "val"
    content = {"images": [{"filename": f"{name}.jpg", "split": split, "sentences": [{"raw": name}]}
                          for name, split in zip("abc", ("train", "val", "test"), strict=True)]}  # fmt: skip
    put(tmp_path / "k" / "dataset.json", content)
    images(tmp_path / "k")
    assert run(tmp_path / "k", tmp_path / "o", split="test") == {"k_c.jpg": ["c"]}
    for split in ("train", "valid"):
        images(tmp_path / "t" / split, "a")
        put(tmp_path / "t" / split / "a.txt", split)
    assert run(tmp_path / "t", tmp_path / "p", split="val") == {"t_a.jpg": ["valid"]}


def test_images_in_text_files(tmp_path):
    data = [write_image(i) for i in range(3)]
    coded = [base64.b64encode(one).decode() for one in data]
    assert all(is_base64(text) for text in coded)
    assert not is_base64("/9j/a/folder/" + "x" * 60 + "/a.jpg")
    table_of = "image,caption\n" + "".join(f"{text},{i}\n" for i, text in enumerate(coded)) + f"{coded[0][:90]},bad\n"
    lines = "".join(json.dumps({"image": f"data:image/jpeg;base64,{t}", "text": str(i)}) + "\n"
                    for i, t in enumerate(coded))  # fmt: skip
    for name, content in (("x.csv", table_of), ("x.jsonl", lines)):
        put(tmp_path / name / name, content)
        out = tmp_path / f"out_{name}"
        assert list(run(tmp_path / name, out).values()) == [["0"], ["1"], ["2"]]
        shards = ShardSet(out / "train")
        assert [shards.read(i).images[0][1] for i in range(3)] == data


def test_parquet(tmp_path, monkeypatch, capsys):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    data = [write_image(i) for i in range(3)]
    nested = [{"bytes": one, "path": None} for one in data]
    for name, column in (("plain", data), ("nested", nested)):
        put(tmp_path / name / "x", "")
        rows = pa.table({"image": column, "caption": [["one", "two"], ["three"], ["four"]]})
        pq.write_table(rows, tmp_path / name / "train-00000-of-00001.parquet", row_group_size=2)
        found = run(tmp_path / name, tmp_path / f"{name}_out", "--workers", "1")
        assert list(found.values()) == [["one", "two"], ["three"], ["four"]]
        shards = ShardSet(tmp_path / f"{name}_out/train")
        assert [shards.read(i).images[0][1] for i in range(3)] == data
    images(tmp_path / "paths", "ab")
    rows = pa.table({"file_name": ["a.jpg", "b.jpg", "a.jpg"], "text": ["one", "three", "two"]})
    pq.write_table(rows, tmp_path / "paths" / "x.parquet")
    assert run(tmp_path / "paths", tmp_path / "o") == {"paths_a.jpg": ["one", "two"], "paths_b.jpg": ["three"]}
    put(tmp_path / "broken.parquet", b"PAR1")
    assert "broken.parquet: not a Parquet file" in refused(capsys, str(tmp_path / "broken.parquet"), "--out", "x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in refused(capsys, str(tmp_path / "paths"), "--out", "x")


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a server with good.jpg, and large.jpg."""
    answers = {"/good.jpg": write_image(1), "/large.jpg": write_image(1) + bytes(200_000)}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers.get(self.path.partition("?")[0])
            self.send_response(200 if body else 404)
            if self.path.startswith("/away"):
                self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_urls_are_fetched_and_what_fails_is_counted(web, tmp_path, monkeypatch):
    monkeypatch.setattr(pair_images, "FETCH_BYTES", 100_000)
    names = ["good.jpg?sig=secret", "gone.jpg?sig=secret", "large.jpg"]
    rows = (
        "".join(f"{web}/{name},text\n" for name in names) + "http://127.0.0.1:1/x.jpg,text\nfile:///etc/x.jpg,text\n"
    )
    put(tmp_path / "mine" / "x.csv", "url,caption\n" + rows)
    found = run(tmp_path / "mine", tmp_path / "out")
    assert list(found.values()) == [["text"]]
    (image_id,) = found
    assert "secret" not in image_id
    assert ShardSet(tmp_path / "out/train").read(0).images[0][1] == write_image(1)
    info = json.loads((tmp_path / "out/train/dataset.json").read_text())
    assert {reason: entry["count"] for reason, entry in info["dropped"].items()} == {
        "not fetched": 3, "missing image": 1}  # fmt: skip
    said = (tmp_path / "out/train/drops.jsonl").read_text()
    assert "404" in said
    assert "larger than" in said
    assert "secret" not in said


def test_names_of_urls_stay_apart_without_their_secrets():
    assert url_name("https://u:p@host/a/b.jpg") == "host/a/b.jpg"
    assert url_name("https://host/a?x=1") != url_name("https://host/a?x=2")


def tars(folder: Path, ends: tuple[str, str], texts_of: list[str]) -> None:
    """Two tars of three samples each, in the form `tar -cf x.tar .` gives."""
    folder.mkdir(parents=True)
    for number in range(2):
        with tarfile.open(folder / f"cc-train-{number:04d}.tar", "w") as tar:
            for i in range(number * 3, number * 3 + 3):
                for end, data in zip(ends, (write_image(i), texts_of[i].encode()), strict=True):
                    member = tarfile.TarInfo(f"./part/{i:03d}.{end}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("ends", "options"),
    [
        (("jpg", "txt"), []),
        (("input.jpg", "outputs.txt"), []),
        (("bin", "cap"), ["--image-key", "bin", "--text-key", "cap"]),
        (("jpg", "meta.json"), ["--text-key", "meta.json:alt"]),
    ],
)
def test_tars_of_any_keys_packed_and_in_place(ends, options, tmp_path):
    plain = [f"text {i}" for i in range(6)]
    written = [json.dumps({"alt": text}) for text in plain] if ends[1].endswith("json") else plain
    written[4] = " "  # nothing to learn from: left out
    tars(tmp_path / "mine", ends, written)
    before = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    packed = run(tmp_path / "mine", tmp_path / "packed", *options)
    placed = run(tmp_path / "mine", tmp_path / "placed", *options, "--in-place")
    assert [text for (text,) in packed.values()] == [plain[i] for i in (0, 1, 2, 3, 5)]
    assert packed == placed
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before
    one, other = ShardSet(tmp_path / "packed/train"), pickle.loads(pickle.dumps(ShardSet(tmp_path / "placed/train")))
    assert [one.read(i).images for i in range(5)] == [other.read(i).images for i in range(5)]
    assert [one.record(i) for i in range(5)] == [other.record(i) for i in range(5)]
    assert one.counts("captions").tolist() == other.counts("captions").tolist()
    assert verify(other) == {}


def test_the_fingerprint_in_place_stands_for_texts_and_images(tmp_path, capsys):
    prints = set()
    for name, first in (("a", "text"), ("b", "another")):
        tars(
            tmp_path / name / "mine",
            ("jpg", "json"),
            [json.dumps({"caption": first, "alt": str(i)}) for i in range(6)],
        )
    for source, key in (("a", "json:caption"), ("a", "json:alt"), ("b", "json:alt")):
        out = tmp_path / f"{source}_{key[5:]}"
        run(tmp_path / source / "mine", out, "--in-place", "--text-key", key)
        prints.add(ShardSet(out / "train").fingerprint)
    assert len(prints) == 3  # other texts, or other tars with the same texts
    assert "choose another --out" in refused(capsys, str(tmp_path / "a/mine"), "--out", str(out), "--in-place")
    source = str(tmp_path / "a/mine")
    assert "packs images again" in refused(capsys, source, "--out", "x", "--in-place", "--max-side", "9")
    assert main(["shards", "pairs", "--raw", source, "--out", source, "--in-place"]) == 0  # beside them
    assert texts(ShardSet(tmp_path / "a/mine"))["mine_cc-train-0000_part/000"] == ["text"]


def test_in_place_is_refused_where_names_or_sources_do_not_allow_it(tmp_path, capsys):
    tars(tmp_path / "mine", ("jpg", "txt"), ["x"] * 6)
    (tmp_path / "mine/cc-train-0000.tar").rename(tmp_path / "mine/cc train.tar")
    command = [str(tmp_path / "mine"), "--out", str(tmp_path / "out"), "--in-place"]
    assert "'cc train.tar' is no name of a shard" in refused(capsys, *command)
    put(tmp_path / "t" / "x.csv", "image,caption\na.jpg,x\n")
    assert "--in-place is for WebDataset tars" in refused(capsys, str(tmp_path / "t"), "--out", "x", "--in-place")
    assert "no tars, no .txt beside" in refused(capsys, str(put(tmp_path / "n/x", "").parent), "--out", "x")
    assert "no such folder" in refused(capsys, str(tmp_path / "nowhere"), "--out", "x")
    assert "the folder is missing" in refused(capsys, "--out", "x")


def test_val_share_keeps_the_texts_of_an_image_together(tmp_path):
    names = "abcdefghij"
    images(tmp_path / "mine", names)
    rows = "".join(f"{name}.jpg,{name} {i}\n" for i in range(3) for name in names)
    put(tmp_path / "mine" / "x.csv", "image,caption\n" + rows)
    train = run(tmp_path / "mine", tmp_path / "out", "--val-share", "0.3", "--seed", "5")
    val = texts(ShardSet(tmp_path / "out/val"))
    assert (len(train), len(val)) == (7, 3)
    assert train | val == {f"mine_{name}.jpg": [f"{name} {i}" for i in range(3)] for name in names}


def test_a_listing_keeps_each_file_once_whatever_the_order_of_roots(tmp_path):
    for name in ("images/train/a.jpg", "images/val/b.jpg", "c.png"):
        put(tmp_path / name, name.encode())
    for roots in (("", "images"), ("images", ""), ("images/train", "", "images")):
        folder = ImageFolder([tmp_path / root for root in roots])
        for name in ("A.JPG", "B", "x/c.PNG"):
            assert folder.find(name).read().decode().rpartition("/")[2][0] == plain_first(name)


def plain_first(name: str) -> str:
    return Path(name).stem[0].lower()


def test_source_tars_and_files_of_others_outlive_overwrite(tmp_path, capsys):
    """OUT is where the source lies; OUT has links of a set in place; OUT has a tar that nobody here wrote."""
    source, out = tmp_path / "mine", tmp_path / "out"
    tars(source / "train", ("jpg", "txt"), ["x"] * 6)
    before = {path.name: path.read_bytes() for path in (source / "train").iterdir()}
    for more in ([], ["--overwrite"]):
        said = refused(capsys, str(source), "--out", str(source), *more)
        assert f"{source}/train is the folder of the source tars; choose another --out" in said
    assert main(["shards", "pairs", str(source), "--out", str(source), "--in-place"]) == 0
    assert "source tars" in refused(capsys, str(source), "--out", str(source), "--overwrite")
    assert {path.name: path.read_bytes() for path in (source / "train").glob("*.tar")} == before
    run(source, out, "--in-place")
    assert len(run(source, out, "--overwrite")) == 6
    assert [path.name for path in (out / "train").glob("*.tar")] == ["mine-000000.tar"]
    assert not (out / "train/records.jsonl").exists()
    assert {path.name: path.read_bytes() for path in (source / "train").glob("*.tar")} == before
    put(out / "train/theirs.tar", "x")
    assert "tars of something else (theirs.tar)" in refused(capsys, str(source), "--out", str(out), "--overwrite")
    assert sorted(path.name for path in (out / "train").glob("*.tar")) == ["mine-000000.tar", "theirs.tar"]


@pytest.mark.parametrize("more", [[], ["--in-place"]])
def test_a_damaged_tar_is_an_error_that_names_the_byte(more, tmp_path, capsys):
    """Cut between two members, inside of one, or a header destroyed: never the samples before it as if all."""
    tars(tmp_path / "mine", ("jpg", "txt"), ["x"] * 6)
    path = tmp_path / "mine/cc-train-0001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
    said = f"no end-of-archive mark at byte {third} of "
    destroyed = whole[:third] + b"x" * 512 + whole[third + 512 :]
    for damaged, why in (
        (whole[:third], said),
        (destroyed, said),
        (whole[: third + 600], f"tar of {third + 600} bytes"),
    ):
        path.write_bytes(damaged)
        assert main(["shards", "pairs", str(tmp_path / "mine"), "--out", str(tmp_path / "out"), *more]) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith(f"error: {path}: broken tar")
        assert why in line


def test_an_image_in_a_tar_that_is_not_stored_as_it_is_is_called_so(tmp_path):
    """A GIF alone is of another format, one beside a JPEG is passed over."""
    gif = io.BytesIO()
    Image.new("L", (32, 32), 9).save(gif, "GIF")
    tars(tmp_path / "mine", ("gif", "txt"), ["x"] * 6)
    with tarfile.open(tmp_path / "mine/cc-train-0000.tar", "w") as tar:
        for name, data in (("a.gif", gif.getvalue()), ("a.jpg", write_image(0)), ("a.txt", b"x"),
                           ("b.gif", gif.getvalue()), ("b.txt", b"y")):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "mine/cc-train-0001.tar").unlink()
    assert list(run(tmp_path / "mine", tmp_path / "out").values()) == [["x"]]
    (drop,) = map(json.loads, (tmp_path / "out/train/drops.jsonl").read_text().splitlines())
    assert (drop["reason"], drop["detail"]) == ("unsupported format", "gif; --reencode stores it as JPEG")
    assert len(run(tmp_path / "mine", tmp_path / "made", "--reencode")) == 2


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnusableItem, match="missing image"):
        RawImage((str(tmp_path / "a.png"),)).read()
