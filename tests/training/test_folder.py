"""A run's folder: one job at a time, files written whole, and trouble said in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fiber.config.base import OptimConfig, SourceConfig, TrainConfig
from fiber.config.stage1 import ImageTextDataConfig, Stage1Config
from fiber.errors import ConfigError
from fiber.training.folder import RunLock, begin_folder, write_whole

HOLD = """
import fcntl, os, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 7 on node-a")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_belongs_to_one_job(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=r"output: .*run is in use by process 7 on node-a; stop that job"):
            RunLock(tmp_path / "run")
        other.stdin.close()
    lock = RunLock(tmp_path / "run")  # it has ended
    assert (tmp_path / "run" / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    lock.close()


def test_a_folder_that_goes_is_noticed(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "run")
    assert not lock.lost()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert lock.lost()
    other = RunLock(tmp_path / "run")
    assert (lock.lost(), other.lost()) == (True, False)
    lock.close()
    other.close()


def test_an_output_that_cannot_be_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=rf"output: {output} cannot be written: "):
            RunLock(output)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a", "new \ud800")
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize(
    "old", [None, b"", b"steps: [", b"\xff\xfe", b"output: a\ntokenizer: t\nold_key: 3\nseed: 9\n"]
)
def test_an_old_configuration_that_is_no_more_stops_nothing(
    old: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = Stage1Config(output=str(tmp_path), tokenizer="none", train=TrainConfig(steps=3))
    if old is not None:
        (tmp_path / "config.yaml").write_bytes(old)
    begin_folder(config, tmp_path, tmp_path / "checkpoints" / "step_000002")
    said = capsys.readouterr().err
    if old is not None and b"seed: 9" in old:
        assert "  seed: was 9, is 0" in said
    elif old:
        assert str(tmp_path / "config.yaml") in said
    assert "steps: 3" in (tmp_path / "config.yaml").read_text()


def test_the_run_of_another_task_is_not_gone_on_with(tmp_path: Path) -> None:
    latest, captions = (
        tmp_path / "checkpoints" / "step_000002",
        Stage1Config(output=str(tmp_path), tokenizer="none", task="caption"),
    )
    begin_folder(captions, tmp_path, None)
    with pytest.raises(ConfigError, match=r"^task: .* has a run of caption; give this one another output$"):
        begin_folder(Stage1Config(output=str(tmp_path), tokenizer="none", task="vqa"), tmp_path, latest)
    assert "task: caption\n" in (tmp_path / "config.yaml").read_text()


def test_signatures_in_addresses_are_no_change_and_are_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def config(query: str, seed: int) -> Stage1Config:
        source = SourceConfig(path=f"https://u:pw@host/train-{{0..3}}.tar?{query}")
        return Stage1Config(
            output=str(tmp_path), tokenizer="none", seed=seed, data=ImageTextDataConfig(train=(source,))
        )

    begin_folder(config("sig=SECRET1", 0), tmp_path, None)
    begin_folder(config("sig=SECRET2", 5), tmp_path, tmp_path / "checkpoints" / "step_000002")
    said = capsys.readouterr().err
    assert "  seed: was 0, is 5\n" in said
    assert "data.train" not in said
    assert "SECRET" not in said + (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize(("warmup", "said"), [(0.1, False), (9, False), (10, True), (2000, True)])
def test_a_rate_that_never_gets_to_its_value_is_said(
    warmup: float, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = Stage1Config(
        output=str(tmp_path), tokenizer="none", train=TrainConfig(steps=10), optim=OptimConfig(warmup=warmup)
    )
    begin_folder(config, tmp_path, None)
    assert ("optim.warmup: no shorter than train.steps" in capsys.readouterr().err) == said
