"""The index by itself: columns by name, arrays that are mapped, older files, damaged ones, names from outside."""

import json
import shutil
import tracemalloc
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from shard_sets import write_shards

from fiber.data import index as index_module
from fiber.data import records
from fiber.data.convert.writer import ShardWriter
from fiber.data.index import Index
from fiber.data.indexing import IndexBuilder, Members
from fiber.data.loader import make_loader
from fiber.data.order import MixedStream, Source
from fiber.data.records import FIELDS
from fiber.data.remote import RemoteFolder
from fiber.data.shards import ShardSet
from fiber.errors import ShardError

OLD = Path(__file__).resolve().parents[1] / "golden" / "old_index"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "set", (5, 5, 2), lambda i: i % 3)
    return tmp_path / "set"


def test_a_new_annotation_field_leaves_older_indexes_runs_and_files_as_they_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ShardSet(folder)  # writes the index
    before = {path.name: path.read_bytes() for path in folder.glob("index.*")}
    state = MixedStream([Source(ShardSet(folder))], seed=0, global_batch=2).state(3)
    more = (*records.FIELDS, "rationales")
    for module in (records, index_module):
        monkeypatch.setattr(module, "FIELDS", more)
    import fiber.data.shards as shards_module

    monkeypatch.setattr(shards_module, "FIELDS", more)
    again = ShardSet(folder)
    assert {path.name: path.read_bytes() for path in folder.glob("index.*")} == before
    assert again.count("rationales") == 0
    assert again.counts("rationales").shape == (12,)
    assert again.count("captions") == sum(max(i % 3, 1) for i in range(12))
    stream = MixedStream([Source(again)], seed=0, global_batch=2)
    assert stream.resume(state) == 3


@pytest.mark.skipif(not OLD.is_dir(), reason="no recorded index of the first version")
def test_the_index_and_the_runs_of_the_first_version_still_hold(tmp_path: Path) -> None:
    """Its fingerprint hashed the fields, too: a checkpoint that has it goes on."""
    (dataset,) = {path.parent for path in OLD.rglob("index.json")}
    shutil.copytree(dataset, tmp_path / "set")
    header = (tmp_path / "set" / "index.json").read_text()
    shards = ShardSet(tmp_path / "set")
    assert (tmp_path / "set" / "index.json").read_text() == header
    import hashlib

    first = hashlib.sha256(header.encode()).hexdigest()[:16]  # as 842a6e4 computed it
    assert shards.first_fingerprint == first
    stream = MixedStream([Source(shards)], seed=0, global_batch=2)
    parts = [(first, "captions", None, "annotation")]
    old = hashlib.sha256(repr((parts, 8)).encode()).hexdigest()[:16]
    assert stream.resume(stream.state(4) | {"fingerprint": old}) == 4
    with pytest.raises(ShardError, match="shards, sources or window changed"):
        stream.resume(stream.state(4) | {"fingerprint": "0" * 16})


def test_arrays_are_mapped_and_equal(folder: Path) -> None:
    read = ShardSet(folder).index
    ShardSet(folder)
    mapped = Index.load(folder)
    for field in fields(Index):
        expected, found = getattr(read, field.name), getattr(mapped, field.name)
        if isinstance(expected, np.ndarray):
            assert np.array_equal(found, expected)
            assert isinstance(found, np.memmap) or not found.size
            assert not found.flags.writeable or not found.size
    assert [mapped.key(i) for i in range(12)] == [read.key(i) for i in range(12)]


@pytest.mark.parametrize("name", ["index.json", "index.npz"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b"PK\x03\x04 cut", None])
def test_a_damaged_index_is_built_again(folder: Path, name: str, content: bytes | None) -> None:
    fingerprint = ShardSet(folder).fingerprint
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert ShardSet(folder).fingerprint == fingerprint


@pytest.mark.parametrize(
    "name", ["../up.tar", "/etc/a.tar", "a b.tar", "a;rm.tar", "a.tar.gz", "pipe:ls", "a/b.tar", 3]
)
def test_names_in_an_index_are_checked_before_use(folder: Path, name: object) -> None:
    ShardSet(folder)
    described = json.loads((folder / "index.json").read_text())
    described["shards"][1]["name"] = name
    (folder / "index.json").write_text(json.dumps(described))
    with pytest.raises(ShardError, match="is no name of a shard"):
        ShardSet(folder)


@pytest.mark.parametrize("name", ["my set", "../up", "a/b", "a;rm"])
def test_a_name_that_no_shard_can_have_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="is no name of a shard"):
        ShardWriter(tmp_path / "out", name)
    assert not list(tmp_path.rglob("*"))


def test_foreign_tars_of_such_names_are_refused_at_the_first_opening(folder: Path) -> None:
    """Not at the second, when the index is read back."""
    next(folder.glob("*.tar")).rename(folder / "my tar.tar")
    with pytest.raises(ShardError, match=r"'my tar\.tar' is no name of a shard .*rename the file"):
        ShardSet(folder)
    assert not list(folder.glob("index.*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "does not parse"),
        ("[]", "is not a JSON object"),
        ('{"name": "../../up"}', "name '../../up' must be a text without slashes"),
        ('{"name": 3}', "name 3 must be a text"),
        ('{"split": "a/b"}', "split 'a/b' must be a text without slashes"),
        ('{"categories": [{"id": 1}]}', "must have an id and a name"),
    ],
)
def test_a_description_that_cannot_be_used_ends_in_one_line(folder: Path, content: str, message: str) -> None:
    (folder / "dataset.json").write_text(content)
    with pytest.raises(ShardError, match=message) as caught:
        ShardSet(folder)
    assert "dataset.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_views_share_everything_and_a_head_ends_early(folder: Path) -> None:
    shards = ShardSet(folder)
    head = shards.view("head", 6)
    assert (len(head), head.name, shards.name) == (6, "head", "test")
    assert head.count("captions") == sum(max(i % 3, 1) for i in range(6))
    assert [head.read(i).key for i in range(6)] == [shards.read(i).key for i in range(6)]
    assert len(shards.view("all")) == 12


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of remote sets that belongs to the test, without pauses between attempts."""
    monkeypatch.setenv("FIBER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fiber.data.remote.WAIT_S", 0)
    return tmp_path / "cache"


def test_a_remote_shard_that_vanishes_between_two_looks_is_fetched_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache never makes an empty file of a shard that another process has just removed."""
    ShardSet(folder)
    remote = RemoteFolder(f"pipe:cat {folder}/{{}}", keep=2)
    path = remote.fetch("index.json")
    assert path.is_relative_to(cache)
    exists = Path.exists

    def exists_until_now(self: Path) -> bool:
        answer = exists(self)
        if self == path:  # another process evicts this one file as soon as it has been seen
            path.unlink(missing_ok=True)
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(Path, "exists", exists_until_now)
        again = remote.fetch("index.json")
    assert again.read_bytes() == (folder / "index.json").read_bytes()
    path.unlink()
    assert remote.fetch("index.json").read_bytes() == (folder / "index.json").read_bytes()


def test_the_processes_of_a_machine_map_one_file_of_a_remote_index(folder: Path, cache: Path, tmp_path: Path) -> None:
    """The arrays are fetched once for all, again where the set has changed, and again where the copy is damaged."""
    ShardSet(folder)
    (folder / "dataset.json").write_text("{}")
    log = tmp_path / "log"
    location = f"pipe:echo {{}} >> {log}; cat {folder}/{{}}"
    first, second = ShardSet(location), ShardSet(location)
    arrays = first.folder / "index.npz"
    inode = arrays.stat().st_ino
    assert log.read_text().split().count("index.npz") == 1
    assert second.counts("captions").tolist() == first.counts("captions").tolist()

    arrays.write_bytes(b"cut short")
    assert len(ShardSet(location)) == 12
    assert log.read_text().split().count("index.npz") == 2

    for path in folder.iterdir():
        path.unlink()
    write_shards(folder, (3, 4), lambda i: 1)
    ShardSet(folder)
    (folder / "dataset.json").write_text("{}")
    assert len(ShardSet(location)) == 7
    assert log.read_text().split().count("index.npz") == 3
    assert arrays.stat().st_ino != inode


def test_a_remote_index_is_never_newer_than_its_arrays(folder: Path, cache: Path) -> None:
    """A fetch that ends between the two files is made good by the next."""
    ShardSet(folder)
    remote = RemoteFolder(f"pipe:cat {folder}/{{}}", keep=2)
    remote.fetch_index()
    described = json.loads((folder / "index.json").read_text())
    described["shards"][0]["sha256"] = "0" * 64
    (folder / "index.json").write_text(json.dumps(described))
    (folder / "index.npz").rename(folder / "aside")
    with pytest.raises(OSError, match="cannot be read"):
        remote.fetch_index()
    before = Index.load(remote.folder)
    assert before is not None
    assert before.shards[0]["sha256"] != "0" * 64
    (folder / "aside").rename(folder / "index.npz")
    RemoteFolder(f"pipe:cat {folder}/{{}}", keep=2).fetch_index()
    after = Index.load(remote.folder)
    assert after is not None
    assert after.shards[0]["sha256"] == "0" * 64


def test_a_shard_that_goes_before_it_is_opened_is_fetched_again_not_a_fault(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ShardSet(folder).read(0).images
    (folder / "dataset.json").write_text("{}")
    remote = ShardSet(f"pipe:cat {folder}/{{}}")
    fetch, gone = RemoteFolder.fetch, []

    def evicted_once(self: RemoteFolder, name: str, again: bool = False) -> Path:
        path = fetch(self, name, again)
        if not gone:
            gone.append(name)
            path.unlink()
        return path

    with monkeypatch.context() as patched:
        patched.setattr(RemoteFolder, "fetch", evicted_once)
        images = remote.read(0).images
    assert gone
    assert images == expected


def test_two_processes_may_evict_at_once(folder: Path, cache: Path) -> None:
    """A file that the other has removed after both had listed it is no error."""
    names = sorted(path.name for path in folder.glob("*.tar"))
    remote = RemoteFolder(f"pipe:cat {folder}/{{}}", keep=1)
    remote.fetch(names[0])
    (remote.folder / "gone.tar").symlink_to("nowhere")  # listed, but its stat fails
    assert remote.fetch(names[1]).exists()


def test_a_builder_joins_what_it_is_given() -> None:
    builder = IndexBuilder()
    builder.add_shard("a.tar", [Members("k", (0, 9), [(10, 5, 0)], [1, 0, 0, 0, 0, 0])], 20, "s")
    builder.add_shard(
        "b.tar", [Members("l"), Members("m", (0, 9), [(1, 2, 1), (3, 4, 2)], [2, 0, 0, 0, 0, 1])], 20, "s"
    )
    index = builder.build()
    assert index.count("captions").tolist() == [1, 1, 2]  # one without a record counts once where the set has any
    assert index.first_image.tolist() == [0, 1, 1, 3]
    assert [index.key(i) for i in range(3)] == ["k", "l", "m"]
    assert make_loader  # the loader reads what the index says: tests/data/test_order.py


def test_an_index_keeps_one_file_open_and_none_once_it_is_added(folder: Path) -> None:
    """A process may have 1,024 files open: seven per set would end mixtures of many sets."""
    ShardSet(folder)  # writes the index

    def opened() -> int:
        return sum(1 for link in Path("/proc/self/maps").read_text().splitlines() if link.endswith("index.npz"))

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, mappings = descriptors(), opened()
    index = Index.load(folder)
    assert index is not None
    assert descriptors() - before == opened() - mappings == 1
    builder = IndexBuilder()
    builder.add(index)
    del index
    assert (descriptors(), opened()) == (before, mappings)
    copy, again = builder.build(), Index.load(folder)
    assert again is not None
    for field in fields(Index):
        assert np.array_equal(getattr(copy, field.name), getattr(again, field.name)), field.name


def test_an_index_of_any_length_is_made_in_little_memory(tmp_path: Path) -> None:
    """Half a million samples, 40 MB of rows; the file is what numpy writes for the same arrays."""
    rows, counts = 500, [1, *[0] * (len(FIELDS) - 1)]
    members = [Members(f"{i:06d}", (512 * i, 9), [(5, i, 0)] * (i % 3), counts) for i in range(rows)]
    one, builder = IndexBuilder(), IndexBuilder(tmp_path)
    one.add_shard("a.tar", members, 20, "s")
    piece = one.build()
    tracemalloc.start()
    for _ in range(1000):
        builder.add(piece)
    builder.save(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "index.npz").stat().st_size > 35_000_000
    assert peak < 16_000_000, peak
    index = Index.load(tmp_path)
    assert index is not None
    assert len(index) == rows * 1000 == len(builder)
    assert index.count("captions").sum() == rows * 1000 == builder.totals()["captions"]
    assert index.key(rows * 999 + 7) == "000007"
    first = index.first_image[rows * 999 + 8]
    assert index.images[first - 1].tolist() == [5, 7]
    with np.load(tmp_path / "index.npz") as arrays:
        assert all(np.array_equal(arrays[name], getattr(index, name)) for name in arrays)
