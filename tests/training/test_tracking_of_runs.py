"""What dashboards hold of real runs of both stages and of one task: W&B's own record read back, and TensorBoard's."""

import json
import struct
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_task import tracker_of
from wandb.proto import wandb_internal_pb2

from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config
from fiber.dashboards.board import About
from fiber.dashboards.sections import SAMPLES, SECTIONS
from fiber.tasks.table import task_of
from fiber.training import run
from fiber.training.watchdog import Watchdog

TOWERS = {
    "image": {"embed_dim": 16, "depths": [1, 1, 2, 1], "heads": [1, 2, 2, 4], "window": 4},
    "text": {"width": 32, "layers": 3, "heads": 2, "intermediate": 64},
    "num_fused": 2,
    "init": "fan_in",
}
DETECTOR = {"channels": 16, "head_channels": 16, "head_blocks": 1, "groups": 4}
BLOCK, WHOLE, LAST = 32768, 1, 4  # of W&B's file
KINDS: dict[str, dict[str, Any]] = {
    "pretrain": {"image_size": 64, "max_text": 24, "model": TOWERS | {"head_width": 32}},
    "vqa": {"task": "vqa", "image_size": 64, "max_text": 24, "model": TOWERS | {"head_width": 32}},
    "regions": {
        "max_text": 64,
        "model": TOWERS,
        "detector": DETECTOR | {"anchor_sizes": [24, 48, 96], "strides": [8, 16, 32]},
        "regions": {"short_sides": [64], "test_side": 64, "max_side": 96, "figures": 2},
    },
}
FIELDS = {"pretrain": ["captions"], "vqa": ["questions"], "regions": ["captions", "boxes"]}


@pytest.fixture(scope="module")
def runs(alone: None, task_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two updates and two evaluations of each kind, with both dashboards."""
    folder = tmp_path_factory.mktemp("runs")
    watchdog = Watchdog(120.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder / "home"))
        for kind, values in KINDS.items():
            sets = [{"path": str(task_sets / "train"), "field": field} for field in FIELDS[kind]]
            config = values | {
                "output": str(folder / "parent" / kind),
                "tokenizer": str(task_sets / "tokenizer"),
                "optim": {"lr": 1e-3, "warmup": 0},
                "train": {"steps": 2, "global_batch": 4, "micro_batch": 4, "log_every": 1, "precision": "fp32"},
                "data": {"train": sets, "workers": 0},
                "eval": {"every": 1, "data": sets},
                "tracking": {"wandb": "offline", "project": "p", "tensorboard": True},
            }
            (folder / f"{kind}.yaml").write_text(yaml.safe_dump(config))
            loaded = load_config(Stage2Config if kind == "regions" else Stage1Config, folder / f"{kind}.yaml")
            job = run.Job.open(loaded, task_of(loaded), watchdog)
            stream, module = job.open_stream(), job.build()
            job.start(module, stream)
            job.train(module, stream)
            wandb.teardown()
    watchdog.close()
    return {kind: folder / "parent" / kind for kind in KINDS}


def records(folder: Path) -> list[wandb_internal_pb2.Record]:
    """All records of the one offline run in `folder`: the log format of LevelDB (blocks of 32 KiB; checksum, length
    and kind before each piece of a record) after seven bytes of W&B's own."""
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    data, place, found, pieces = file.read_bytes(), 7, list[wandb_internal_pb2.Record](), b""
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # too short for a piece: padding
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        pieces += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (WHOLE, LAST):
            found.append(wandb_internal_pb2.Record.FromString(pieces))
            pieces = b""
    return found


def history(folder: Path) -> list[dict[str, Any]]:
    rows = [record.history.item for record in records(folder) if record.WhichOneof("record_type") == "history"]
    return [nested(row) for row in rows]


def nested(items: Iterable[Any]) -> dict[str, Any]:
    """W&B's items as plain data: {"nested_key": ["a", "b"], "value_json": "1"} is {"a": {"b": 1}}."""
    out: dict[str, Any] = {}
    for item in items:
        *above, last = item.nested_key or [item.key]
        place = out
        for name in above:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return out


def summary(folder: Path) -> dict[str, Any]:
    """The newest value of every key of the summary."""
    updates = [r.summary.update for r in records(folder) if r.WhichOneof("record_type") == "summary"]
    return nested(item for update in updates for item in update)


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_has_a_section_and_the_headline_is_short(kind: str, runs: dict[str, Path]) -> None:
    rows = history(runs[kind])
    keys = {key for row in rows for key in row if not key.startswith("_")}
    assert {key.partition("/")[0] for key in keys} <= set(SECTIONS)
    assert {"headline/loss", "speed/seconds/step", "train/loss/total", SAMPLES} <= keys
    top = {key for key in keys if key.startswith("headline/")}
    assert 6 <= len(top) <= 12
    assert top > {"headline/loss", "headline/pairs_per_second", "headline/data_wait", "headline/fault_share"}
    for row in rows:
        assert all(value != -1 for key, value in row.items() if key.startswith(("headline/", "eval/")))
    assert sorted({row[SAMPLES] for row in rows if SAMPLES in row}) == [4, 8]


@pytest.mark.parametrize("kind", KINDS)
def test_the_summary_keeps_the_best_and_the_axis_is_samples(kind: str, runs: dict[str, Path]) -> None:
    rows, found = history(runs[kind]), summary(runs[kind])
    losses = [row["headline/loss"] for row in rows if "headline/loss" in row]
    assert len(losses) == 2
    defined = [r.metric for r in records(runs[kind]) if r.WhichOneof("record_type") == "metric"]
    axes = {metric.glob_name or metric.name: metric.step_metric for metric in defined}
    assert {axes[f"{section}/*"] for section in SECTIONS} == {SAMPLES}
    best = {metric.name for metric in defined if metric.summary.max}
    assert {name.partition("/")[0] for name in best} == {"headline", "eval"}
    for name in best:
        values = [row[name] for row in rows if name in row]
        assert len(values) == 2
        assert found[name]["max"] == max(values)
    assert found["headline/loss"]["min"] == min(losses)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_says_what_it_is(kind: str, runs: dict[str, Path]) -> None:
    every = records(runs[kind])
    (start,) = (record.run for record in every if record.WhichOneof("record_type") == "run")
    assert (start.run_group, start.job_type) == (kind, kind)
    assert set(start.tags) >= {"fine" if kind == "regions" else "coarse", kind, "fp32", "scenes"}
    config = {item.key: json.loads(item.value_json) for item in start.config.update}
    environment = config["environment"]
    assert environment["world"] == 1
    assert environment["card"] == "cpu"
    assert environment["parameters"] >= environment["trained_parameters"] > 10_000
    assert {(one["name"], one["samples"], one["licence"]) for one in environment["data"]} == {("scenes", 12, "none")}
    assert all(len(one["fingerprint"]) == 16 for one in environment["data"])
    assert config["train"]["global_batch"] == 4


def test_boxes_are_data(runs: dict[str, Path]) -> None:
    """W&B's box files: true and found boxes in pixels of the image alone, with class and score."""
    rows = [row["eval/regions"] for row in history(runs["regions"]) if "eval/regions" in row]
    assert rows
    assert {row["_type"] for row in rows} == {"images/separated"}
    assert [row["count"] for row in rows] == [4, 4]  # two of the captions, two of the boxes
    (files,) = (runs["regions"] / "wandb").glob("offline-run-*/files")
    for row in rows:
        boxes = row["all_boxes"]
        assert {kind for image in boxes if image for kind in image} <= {"true", "found"}
        true = json.loads((files / boxes[0]["true"]["path"]).read_text())["box_data"]
        assert true
        assert all(0 <= one["position"]["minX"] < one["position"]["maxX"] <= row["width"] for one in true)
        assert all(one["domain"] == "pixel" and one["box_caption"] for one in true)


@pytest.mark.parametrize("kind", KINDS)
def test_tensorboard_has_the_same_scalars(kind: str, runs: dict[str, Path]) -> None:
    events = EventAccumulator(str(runs[kind] / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    rows = history(runs[kind])
    wanted = {key for row in rows for key, value in row.items() if isinstance(value, int | float) and key[0] != "_"}
    assert set(tags["scalars"]) == wanted
    losses = [row["train/loss/total"] for row in rows if "train/loss/total" in row]
    assert [event.value for event in events.Scalars("train/loss/total")] == pytest.approx(losses)
    assert "config/text_summary" in tags["tensors"]
    if kind == "regions":
        assert sum(tag.startswith("eval/examples/") for tag in tags["images"]) == 4


def test_what_goes_wrong_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipped updates, faults near the tolerated share, a run that waits for data, and one that fails."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    tracker = tracker_of(tmp_path / "run", wandb="offline")
    fine = {"seconds/step": 1.0, "seconds/data": 0.1}
    tracker.log(0, fine)
    tracker.log(999, fine | {"faults/undecodable_image": 10.0})  # of 4,000: a quarter of 1 %
    assert not alerts(tmp_path / "run")
    tracker.log(1000, fine | {"faults/undecodable_image": 30.0})
    tracker.log(1001, fine | {"seconds/data": 0.6})
    tracker.log(1002, fine | {"skipped/nonfinite": 1.0})
    tracker.log(1003, fine | {"skipped/nonfinite": 1.0})
    with pytest.raises(RuntimeError, match="gone"), tracker.failure_known():
        raise RuntimeError("the card is gone")
    wandb.teardown()
    told = alerts(tmp_path / "run")
    assert [title for title, _ in told] == [
        "unusable samples", "waiting for data", "loss not finite", "the run failed",
    ]  # fmt: skip
    assert "0.75%" in told[0][1]
    assert "the card is gone" in told[3][1]
    (end,) = (r.exit for r in records(tmp_path / "run") if r.WhichOneof("record_type") == "exit")
    assert end.exit_code == 1


def alerts(folder: Path) -> list[tuple[str, str]]:
    kinds = [record for record in records(folder) if record.WhichOneof("record_type") == "alert"]
    return [(record.alert.title, record.alert.text) for record in kinds]


def test_tensorboard_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    tracker = tracker_of(tmp_path, tensorboard=True)
    tracker.log(0, {"loss/total": 1.0})
    tracker.close()
    assert capsys.readouterr().err.count("tracking.tensorboard: the tensorboard package is not installed") == 1


def test_group_is_the_parent_run(tmp_path: Path) -> None:
    """Runs that start from one another stand together; the parent's id is kept where it has one."""
    about = partial(_about, tmp_path)
    assert about(None).group == "child"
    assert about(None).environment["parent"] is None
    (tmp_path / "parent" / "wandb").mkdir(parents=True)
    (tmp_path / "parent" / "wandb" / "id").write_text("abcd1234")
    for start in (tmp_path / "parent", tmp_path / "parent" / "export"):
        assert about(str(start)).group == "parent"
        assert about(str(start)).environment["parent"] == {"name": "parent", "wandb_id": "abcd1234"}


def _about(folder: Path, init_from: str | None) -> About:
    from test_run import Stream
    from toy_task import Regression

    from fiber.tasks import vqa
    from fiber.training.tracking import about

    config = Stage1Config(output=str(folder / "child"), tokenizer="none", task="vqa", init_from=init_from)
    return about(config, vqa.TASK, Regression(), Stream())
