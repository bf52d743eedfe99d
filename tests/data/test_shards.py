"""Shards: reproducible bytes, the index against webdataset and tarfile, resuming, and damaged tars."""

import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from shard_sets import jpeg, make_sample

from fiber.data.convert.writer import ShardWriter, write_dataset
from fiber.data.indexing import scan_tar
from fiber.data.records import RecordError, Sample
from fiber.data.shards import ShardSet, build_index
from fiber.errors import SampleFault, ShardError

LABELS = {"split": "train", "provenance": "made by a test", "licence": "MIT"}


def samples(number: int = 7) -> list[Sample]:
    made = [make_sample(i, 1 + i % 3) for i in range(number)]
    made[2].images.append(("png", jpeg(9)))  # a pair, with a wrong extension
    made[3].key = "long" * 40  # longer than a tar header's name field
    return made


def test_what_is_written_is_read(tmp_path: Path) -> None:
    info = write_dataset(
        samples(), tmp_path, name="t", categories=[{"id": 1, "name": "dog"}], max_samples=3, **LABELS
    )
    shards = ShardSet(tmp_path)
    expected = samples()
    expected[2].images[1] = ("jpg", expected[2].images[1][1])
    assert [shards.read(i) for i in range(len(shards))] == expected
    assert info["annotations"] == {"captions": shards.count("captions")} == {"captions": 13}
    assert shards.categories == [{"id": 1, "name": "dog"}]
    assert [s["samples"] for s in shards.index.shards] == [3, 3, 1]
    assert shards.place(4) == ("t-000001.tar", expected[4].key)
    assert shards.counts("captions").tolist() == [1, 2, 3, 1, 2, 3, 1]


def test_webdataset_reads_the_same(tmp_path: Path) -> None:
    write_dataset(samples(), tmp_path, name="t", max_samples=3, **LABELS)
    urls = [str(p) for p in sorted(tmp_path.glob("*.tar"))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    ours = ShardSet(tmp_path)
    assert [s["__key__"] for s in theirs] == [ours.index.key(i) for i in range(len(ours))]
    for i, their in enumerate(theirs):
        sample = ours.read(i)
        names = [f"{n}.jpg" for n in range(2)] if len(sample.images) == 2 else ["jpg"]
        assert [their[name] for name in names] == [data for _, data in sample.images]
        assert json.loads(their["json"]) == sample.record


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_dataset(samples(), tmp_path / name, name="t", max_samples=2, **LABELS)
    for path in (tmp_path / "a").iterdir():
        if path.suffix != ".npz":
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert ShardSet(tmp_path / "a").fingerprint == ShardSet(tmp_path / "b").fingerprint


def test_an_index_built_later_equals_the_writers(tmp_path: Path) -> None:
    write_dataset(samples(), tmp_path, name="t", max_samples=3, **LABELS)
    written = ShardSet(tmp_path).index
    (tmp_path / "index.npz").unlink()
    built = ShardSet(tmp_path).index
    assert built.shards == written.shards
    for name in vars(built).keys() - {"shards", "fields"}:
        assert np.array_equal(getattr(built, name), getattr(written, name)), name
        assert getattr(built, name).dtype == getattr(written, name).dtype


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "a b", "s0000"])
def test_bad_and_repeated_keys_are_refused(tmp_path: Path, key: str) -> None:
    sample = make_sample(1)
    sample.key = key
    with ShardWriter(tmp_path, "t") as writer:
        writer.add(make_sample(0))
        with pytest.raises(ShardError, match="key"):
            writer.add(sample)


def test_an_invalid_record_names_the_sample(tmp_path: Path) -> None:
    sample = make_sample(5)
    sample.record["captions"][0]["text"] = " "
    with pytest.raises(RecordError, match=r"s0005.*captions\[0\]"):
        write_dataset([sample], tmp_path, name="t", **LABELS)


def test_nothing_to_write_is_told(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no samples came"):
        write_dataset([], tmp_path, name="t", **LABELS)


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    write_dataset(samples(), tmp_path, name="t", **LABELS)
    with pytest.raises(ShardError, match="already holds"):
        ShardWriter(tmp_path, "t")


def test_missing_and_changed_shards_are_told(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no such folder"):
        ShardSet(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match=r"no \*.tar shards"):
        ShardSet(tmp_path / "empty")
    write_dataset(samples(), tmp_path / "set", name="t", max_samples=3, **LABELS)
    (tmp_path / "set" / "t-000000.tar").rename(tmp_path / "set" / "zz.tar")
    with pytest.raises(ShardError, match=r"t-000000\.tar is missing"):
        ShardSet(tmp_path / "set")
    (tmp_path / "set" / "t-000000.tar").write_bytes((tmp_path / "set" / "zz.tar").read_bytes())
    with pytest.raises(ShardError, match=r"zz\.tar is not in the index"):
        ShardSet(tmp_path / "set")


def test_a_tar_cut_after_indexing_faults_sample_by_sample(tmp_path: Path) -> None:
    write_dataset(samples(), tmp_path, name="t", **LABELS)
    place = ShardSet(tmp_path).index.images[4]
    os.truncate(tmp_path / "t-000000.tar", int(place[0]) + 10)
    shards = ShardSet(tmp_path)
    assert shards.read(2).key == "s0002"
    for i in (4, 5, 6):
        with pytest.raises(SampleFault) as fault:
            shards.read(i)
        assert fault.value.reason == "truncated_shard"
    assert shards.verify() == ["t-000000.tar: bytes differ from the index"]


def test_a_tar_cut_before_indexing_keeps_its_whole_samples_and_is_reported(tmp_path: Path) -> None:
    write_dataset([make_sample(i) for i in range(6)], tmp_path, name="t", **LABELS)
    end = int(ShardSet(tmp_path).index.record[3].sum())
    os.truncate(tmp_path / "t-000000.tar", end + 100)
    (tmp_path / "index.json").unlink()
    shards = ShardSet(tmp_path)
    assert [shards.read(i).key for i in range(len(shards))] == [f"s{i:04d}" for i in range(4)]
    assert [name for name, _ in shards.damaged()] == ["t-000000.tar"]


def test_a_corrupt_header_is_damage_where_tarfile_stops_silently(tmp_path: Path) -> None:
    write_dataset([make_sample(i) for i in range(6)], tmp_path, name="t", **LABELS)
    path = tmp_path / "t-000000.tar"
    data = bytearray(path.read_bytes())
    offset = int(ShardSet(tmp_path).index.images[3][0]) - 512
    data[offset : offset + 512] = b"x" * 512
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 6, "half the members are lost without a word"
    with open(path, "rb") as file:
        members, damage = scan_tar(file)
    assert [m.key for m in members] == ["s0000", "s0001", "s0002"]
    assert "end-of-archive" in damage


def test_foreign_tars_with_missing_members_fault(tmp_path: Path) -> None:
    """Tars made by another tool: a sample without JSON, one without image, bad JSON, and a file of no interest."""
    record = json.dumps(make_sample(0).record)
    bare = json.dumps({"image_id": "x", "captions": [{"text": "t"}]})
    members = {
        "a.jpg": jpeg(1), "a.json": record.encode(), "a.txt": b"ignored",
        "b.jpg": jpeg(2),
        "c.json": record.encode(),
        "d.jpeg": jpeg(3), "d.json": b"{not json",
        "e.jpg": jpeg(4), "e.json": bare.encode(),
    }  # fmt: skip
    with tarfile.open(tmp_path / "foreign.tar", "w") as tar:
        for name, data in members.items():
            (tmp_path / name).write_bytes(data)
            tar.add(tmp_path / name, name)
    build_index(tmp_path)
    shards = ShardSet(tmp_path)
    assert shards.counts("captions").tolist() == [1, 1, 1, 1, 1], "unreadable records are drawn, and so noticed"
    assert shards.read(0).images == [("jpg", jpeg(1))]
    reasons = []
    for i in range(1, 5):
        with pytest.raises(SampleFault) as fault:
            shards.read(i)
        reasons.append(fault.value.reason)
    assert reasons == ["missing_json", "missing_image", "bad_json", "missing_field"]


def test_views_travel_to_other_processes_as_they_are(tmp_path: Path) -> None:
    """Where workers are spawned, sets are pickled: a rehearsal's few samples must not come back as the whole set."""
    write_dataset(samples(), tmp_path, name="t", max_samples=3, **LABELS)
    shards = ShardSet(tmp_path)
    for part, name, count in ((shards, "t", len(shards)), (shards.view("head", 4), "head", 4)):
        arrived = pickle.loads(pickle.dumps(part))
        assert (arrived.name, len(arrived)) == (name, count)
        assert [arrived.read(i).key for i in range(count)] == [shards.read(i).key for i in range(count)]
        assert arrived.counts("captions").tolist() == part.counts("captions").tolist()
