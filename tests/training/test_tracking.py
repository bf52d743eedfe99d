"""metrics.jsonl of resumed runs, and W&B where it cannot work."""

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from fiber.training.tracking import Tracker


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_lines_of_steps_that_run_again_are_dropped(tmp_path: Path) -> None:
    first = Tracker(tmp_path, {}, wandb="off", project="p")
    for step in range(4):
        first.log(step, {"loss": float(step), "bad": float("nan")})
    first.log(1, {"eval/r1": 0.5})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    second = Tracker(tmp_path, {}, wandb="off", project="p", start=2)
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
    for name in ("WANDB_MODE", "WANDB_API_KEY", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no stored key
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    ids = []
    for start in (0, 1):
        begun = time.monotonic()
        tracker = Tracker(tmp_path / "run", {"seed": 1}, wandb="online", project="p", start=start)
        assert time.monotonic() - begun < 30
        assert "going on offline" in capsys.readouterr().err
        tracker.log(start, {"loss": 1.0})
        tracker.table(start, "examples", ["text", "score"], [["a dog", 0.5]])
        tracker.close()
        ids.append((tmp_path / "run" / "wandb" / "id").read_text())
    assert ids[0] == ids[1]
    recorded = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{ids[0]}"))
    assert recorded
    assert [line["step"] for line in lines(tmp_path / "run")] == [0, 1]


def test_images_stand_in_a_table_beside_their_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    paths = [tmp_path / "figures" / f"step_000002_{i}.png" for i in range(2)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.new("RGB", (8, 6), "red").save(path)
    paths[1].with_suffix(".json").write_text(json.dumps({"question": "what is it?", "prediction": "red"}))
    tracker = Tracker(tmp_path, {}, wandb="offline", project="p")
    tracker.images(1, paths)
    tracker.images(1, [])
    tracker.close()
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/eval/images_*.table.json")
    table = json.loads(stored.read_text())
    assert table["columns"] == ["image", "name", "question", "prediction"]
    assert table["data"] == [  # the pixels travel in an artifact
        ["Image", "step_000002_0", "", ""],
        ["Image", "step_000002_1", "what is it?", "red"],
    ]
