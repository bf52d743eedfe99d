"""Shard sets of strangers: what an index or a dataset.json says never becomes a command or a path outside."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from shard_sets import write_shards

from fiber.data.collate import collate
from fiber.data.loader import Fault, eval_loader, make_loader
from fiber.data.order import MixedStream, Source
from fiber.data.records import Sample
from fiber.data.remote import RemoteFolder
from fiber.data.shards import ShardSet, dataset_info
from fiber.errors import DataFaultError, SampleFault, ShardError, without_secrets
from fiber.evaluation.context import _whereabouts
from fiber.evaluation.predictions import PredictionWriter


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of one shard that others serve; caches and everything else that is written stay below tmp_path."""
    monkeypatch.setenv("FIBER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fiber.data.remote.WAIT_S", 0)
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "served", (3,), lambda i: 1)
    ShardSet(tmp_path / "served")
    return tmp_path / "served"


@pytest.fixture
def url(hostile: Path) -> Iterator[str]:
    """The folder over HTTP; any name that is not there is answered with the tar, as an attacker would."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            found = hostile / path.partition("?")[0].rpartition("/")[2]
            return str(found if found.exists() else hostile / "s0-000000.tar")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/set"
    server.shutdown()


def rename(folder: Path, name: object) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["name"] = name
    (folder / "index.json").write_text(json.dumps(index))


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["s0-000000.tar;touch pwned", "$(touch pwned).tar", "a'; touch pwned; '.tar",
                                  "|touch pwned;.tar", "-x.tar", "a\n.tar"])  # fmt: skip
def test_names_of_an_index_are_no_commands(hostile: Path, url: str, name: str) -> None:
    rename(hostile, name)
    for location in (f"pipe:cat {hostile}/{{}}", url):
        with pytest.raises(ShardError, match="is no name of a shard"):
            ShardSet(location)
    assert not Path("pwned").exists()


def test_names_of_an_index_are_no_paths(hostile: Path, url: str, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "authorized_keys").write_text("mine")
    for name in (f"../../../victim/{'authorized_keys'}", f"{tmp_path}/victim/authorized_keys", "../../../up.tar",
                 "..", ".hidden.tar", "/etc/passwd", 3, None):  # fmt: skip
        rename(hostile, name)
        for location in (url, f"pipe:cat {hostile}/{{}}", str(hostile)):
            with pytest.raises(ShardError, match="is no name of a shard"):
                ShardSet(location)
    outside = everything(tmp_path) - everything(tmp_path / "cache") - everything(hostile)
    assert outside == {tmp_path / "victim" / "authorized_keys"}
    assert (tmp_path / "victim" / "authorized_keys").read_text() == "mine"


def test_a_hostile_name_of_a_set_never_names_a_file(hostile: Path, url: str) -> None:
    """In training and evaluation alike: predictions, figures and exports are named by it."""
    for name in ("../../../evil", "my/set", "a\\b", "a\0b", "n" * 300, "名" * 100, ".", "..", 7):
        (hostile / "dataset.json").write_text(json.dumps({"name": name}))
        for opened in (ShardSet, dataset_info):
            for location in (str(hostile), f"pipe:cat {hostile}/{{}}", url):
                with pytest.raises(ShardError, match="without slashes"):
                    opened(location)


def test_predictions_stay_in_their_folder(tmp_path: Path) -> None:
    victim = tmp_path / "evil.00000-of-00001.jsonl"
    victim.write_text("mine")
    for name in ("../evil", f"{tmp_path}/evil", "a/b", "", ".."):
        with pytest.raises(ValueError, match="names no file"):
            PredictionWriter(tmp_path / "out", name)
    assert victim.read_text() == "mine"


def test_downloads_are_compared_with_the_index(hostile: Path, url: str) -> None:
    """The right size with other bytes, and a pipe that ends early with status 0: faults, and nothing stays cached."""
    tar = hostile / "s0-000000.tar"
    whole = tar.read_bytes()
    for damaged in (whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:], whole[:2000]):
        tar.write_bytes(damaged)
        for location in (url, f"pipe:cat {hostile}/{{}}"):
            shards = ShardSet(location)
            with pytest.raises(SampleFault, match="sha256") as fault:
                shards.read(0)
            assert fault.value.reason == "unreadable_shard"
            assert not list(shards.folder.glob("*.tar"))
    tar.write_bytes(whole)
    assert ShardSet(url).read(0).key == "s0000"


def test_a_changed_set_leaves_no_old_shard_in_the_cache(hostile: Path, url: str) -> None:
    assert ShardSet(url).read(0).record["captions"][0]["text"] == "s image 0 caption 0"
    for path in hostile.iterdir():
        path.unlink()
    write_shards(hostile, (3,), lambda i: 2)
    ShardSet(hostile)
    assert len(ShardSet(url).read(0).record["captions"]) == 2


def test_a_dead_server_is_told_soon(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = RemoteFolder("http://127.0.0.1:9/set", keep=2)
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9/set/a\.tar cannot be read .*refused"):
        remote.fetch("a.tar")


def test_secrets_of_urls_are_not_passed_on() -> None:
    for url in ("https://acct.blob.core.net/c/{}?sv=1&sig=SECRET", "s3://key:SECRET@host/c/{}", "http://SECRET@h/c/{}",
                "https://SECRET:x@h/c/{}?token=SECRET"):  # fmt: skip
        for text in (url, json.dumps({"path": url, "other": "what? no"}), f"path: {url}\nother: what? no\n"):
            shown = without_secrets(text)
            assert "SECRET" not in shown
            assert "/c/{}" in shown
            assert ("what? no" in shown) == ("what? no" in text)
    assert without_secrets("pipe:aws s3 cp s3://bucket/{} -") == "pipe:aws s3 cp s3://bucket/{} -"


def test_secrets_are_in_no_fault_and_no_message(hostile: Path, url: str) -> None:
    """What faults.jsonl, a log, W&B and the list of what was evaluated are made of."""
    index = json.loads((hostile / "index.json").read_text())
    index["shards"][0]["damage"] = "cut short"
    (hostile / "index.json").write_text(json.dumps(index))
    signed = ShardSet(f"{url}/{{}}?sig=SECRET")
    lost = Fault(signed.facts.path, "k", "a box")

    def gather(samples: list) -> dict:
        return collate(samples) | {"dropped": [lost]}

    def damaged(sample: Sample, *_: object) -> dict:
        raise SampleFault("undecodable_image", "no image")

    stream = MixedStream([Source(signed)], seed=0, global_batch=1)
    batch = next(make_loader(stream, lambda *_: {"x": 1}, gather, micro_batch=1))
    assert [fault.reason for fault in batch["faults"]] == ["damaged_shard", "a box"]
    with pytest.raises(DataFaultError, match=r"in a row .*/set/\{\}/s0-000000\.tar") as training:
        next(make_loader(stream, damaged, gather, micro_batch=1))
    with pytest.raises(DataFaultError, match=r"; pack http.*/set/\{\} again") as evaluation:
        next(eval_loader(signed, "captions", damaged, gather, batch=1))
    with pytest.raises(ShardError) as wrong:
        MixedStream([Source(signed, "statements")], seed=0, global_batch=1)
    for text in (*batch["faults"], training.value, evaluation.value, wrong.value, _whereabouts(signed)):
        assert "/set/{}" in str(text)
        assert "SECRET" not in str(text)


def test_a_set_that_is_its_shards_has_no_description(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the shell expands the braces too, a command for dataset.json would bring the whole set in its place."""
    opened: list[str] = []

    def shell(url: str) -> IO[bytes]:
        opened.append(url)
        return (hostile / "s0-000000.tar").open("rb")

    monkeypatch.setattr("fiber.data.remote._open_url", shell)
    location = f"pipe:cat {hostile}/s0-{{000000..000000}}.tar"
    assert dataset_info(location) == {}
    assert len(ShardSet(location)) == 3
    assert opened == [f"pipe:cat {hostile}/s0-000000.tar"]
