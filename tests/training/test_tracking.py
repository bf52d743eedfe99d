"""metrics.jsonl of resumed runs, and W&B where it cannot work."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import wandb
from PIL import Image
from toy_task import tracker_of

from fiber.dashboards.wandb_board import _has_key
from fiber.training.tracking import keep_before

VARIABLES = (
    "WANDB_MODE",
    "WANDB_API_KEY",
    "WANDB_PROJECT",
    "WANDB_NAME",
    "WANDB_DIR",
    "WANDB_RUN_ID",
    "WANDB_INIT_TIMEOUT",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
)


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variables and no stored key of this machine; W&B reads them once per process."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    wandb.teardown()
    yield
    wandb.teardown()


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_lines_of_steps_that_run_again_are_dropped(tmp_path: Path) -> None:
    first = tracker_of(tmp_path, wandb="off")
    for step in range(4):
        first.log(step, {"loss": float(step), "bad": float("nan")})
    first.log(1, {"eval/r1": 0.5})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    second = tracker_of(tmp_path, wandb="off", start=2)
    second.log(2, {"loss": 20.0})
    second.close()
    assert lines(tmp_path) == [
        {"step": 0, "loss": 0.0, "bad": None},
        {"step": 1, "loss": 1.0, "bad": None},
        {"step": 1, "eval/r1": 0.5},
        {"step": 2, "loss": 20.0},
    ]


@pytest.mark.parametrize("key", [None, "0" * 40])
def test_online_without_key_or_network_goes_on_offline(
    key: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The same run id serves before and after a restart, and a table and its image land in the run's folder."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    image, ids = tmp_path / "red.png", []
    Image.new("RGB", (8, 6), "red").save(image)
    for start in (0, 1):
        begun = time.monotonic()
        tracker = tracker_of(tmp_path / "run", wandb="online", start=start)
        assert time.monotonic() - begun < 30
        assert "going on offline" in capsys.readouterr().err
        tracker.log(start, {"loss": 1.0})
        tracker.images(start, [image])
        tracker.close()
        ids.append((tmp_path / "run" / "wandb" / "id").read_text())
    assert ids[0] == ids[1]
    recorded = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{ids[0]}"))
    assert recorded
    assert [line["step"] for line in lines(tmp_path / "run")] == [0, 1]


def test_images_stand_in_a_table_with_their_texts(tmp_path: Path) -> None:
    paths = [tmp_path / "figures" / f"step_000002_{i}.png" for i in range(2)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.new("RGB", (8, 6), "red").save(path)
    paths[1].with_suffix(".json").write_text(json.dumps({"question": "what is it?", "prediction": "red"}))
    tracker = tracker_of(tmp_path, wandb="offline")
    tracker.images(1, paths)
    tracker.images(1, [])
    tracker.close()
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/eval/examples_*.table.json")
    table = json.loads(stored.read_text())
    assert table["columns"] == ["image", "name", "question", "prediction"]
    assert table["data"] == [  # the pixels travel in an artifact
        ["Image", "step_000002_0", "", ""],
        ["Image", "step_000002_1", "what is it?", "red"],
    ]


@pytest.mark.parametrize("speaks", [False, True], ids=["silent", "speaks"])
def test_a_server_that_never_answers_holds_nobody_up(
    speaks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The server that WANDB_BASE_URL names is the one that is asked. It takes connections; once it also says one
    word to the first, and nothing to W&B itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
        if speaks:
            threading.Thread(target=_answer_once, args=(server,), daemon=True).start()
        begun = time.monotonic()
        tracker = tracker_of(tmp_path, wandb="online")
        tracker.log(0, {"loss": 1.0})
        tracker.close()
        assert time.monotonic() - begun < 25
    said = capsys.readouterr().err
    assert ("online failed" if speaks else "going on offline") in said
    assert "offline failed" not in said
    assert "deprecated" not in said
    wandb.teardown()  # its process has written all
    (recorded,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert recorded.stem.removeprefix("run-") == (tmp_path / "wandb" / "id").read_text()
    assert b"headline/loss" in recorded.read_bytes()


def _answer_once(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def test_a_key_is_found_where_wandb_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a variable, or in one of its two files; where there is none it would ask at the terminal."""
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert not _has_key(wandb.setup().settings)
    for name in (".netrc", "_netrc"):
        file = tmp_path / "home" / name
        file.parent.mkdir(exist_ok=True)
        for machine, found in (("127.0.0.1", False), ("127.0.0.1:9", True)):
            file.write_text(f"machine {machine} login user password {'0' * 40}\n")
            assert _has_key(wandb.setup().settings) == found
        file.unlink()
    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert _has_key(wandb.setup().settings)


def test_settings_that_wandb_refuses_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "soon")
    tracker = tracker_of(tmp_path, wandb="online")
    tracker.log(0, {"loss": 1.0})
    tracker.close()
    assert "offline failed" in capsys.readouterr().err
    assert [line["step"] for line in lines(tmp_path)] == [0]


def test_variables_of_wandb_come_before_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = tracker_of(tmp_path / "a", wandb="offline")
    assert wandb.run is not None
    assert (wandb.run.project, wandb.run.name, wandb.run.settings.finish_timeout) == ("p", "a", 60)
    tracker.close()
    for name, value in (("PROJECT", "q"), ("NAME", "other"), ("RUN_ID", "abc"), ("DIR", str(tmp_path / "c"))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "c").mkdir()
    wandb.teardown()
    tracker = tracker_of(tmp_path / "b", wandb="online")
    assert wandb.run is not None
    assert (wandb.run.project, wandb.run.name, wandb.run.id) == ("q", "other", "abc")
    tracker.close()
    assert list((tmp_path / "c" / "wandb").glob("offline-run-*-abc"))


@pytest.mark.parametrize(("setting", "variable"), [("online", "disabled"), ("off", "online")])
def test_off_is_off_by_either_way(
    setting: Literal["online", "off"], variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    tracker = tracker_of(tmp_path, wandb=setting)
    tracker.log(0, {"loss": 1.0})
    tracker.close()
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["metrics.jsonl"]


def test_what_fails_later_is_said_once_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tracker = tracker_of(tmp_path, wandb="offline")
    tracker.log(0, {"loss": 1.0})
    wandb.finish()  # the run is gone from under the tracker
    for step in (1, 2):
        tracker.log(step, {"loss": 1.0})
        tracker._alert("title", "text")
    tracker.close()
    assert capsys.readouterr().err.count("going on without it") == 1
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]


def test_lines_of_steps_that_run_again_go_and_so_do_torn_ones(tmp_path: Path) -> None:
    """metrics.jsonl and faults.jsonl of a killed run: what the checkpoint knows stays, byte for byte."""
    path = tmp_path / "faults.jsonl"
    lines = [json.dumps({"step": step, "key": f"k{step}"}) + "\n" for step in (0, 0, 3, 4, 4, 5)]
    path.write_text("".join(lines) + '{"step": 3, "ke')
    keep_before(path, 4)
    assert path.read_text() == "".join(lines[:3])
    keep_before(path, 0)
    assert path.read_text() == ""
    keep_before(tmp_path / "absent.jsonl", 4)
    assert [entry.name for entry in tmp_path.glob("*.jsonl*")] == ["faults.jsonl"]
