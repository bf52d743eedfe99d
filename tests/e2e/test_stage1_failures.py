"""Trouble ends the whole job, in time, with a message that says what and who."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from launcher import STAGE1, Job, losses, metrics

from fiber.data.convert.writer import ShardWriter
from fiber.data.records import Sample
from fiber.data.shards import ShardSet


def test_killed_rank_is_named(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Job(STAGE1, "--config", config, f"output={run}", "train.steps=10000", folder=tmp_path) as job:
        job.until(lambda: 3 in losses(run))
        os.kill(job.rank_pid(1), signal.SIGKILL)
        status = job.wait(60)
        assert status != 0
        assert "watchdog: rank 1 on" in job.output
        assert "has no pulse" in job.output
        assert "in _worker_loop" in job.output  # the stack of its loader worker


@pytest.mark.parametrize("victim", [0, 1])
def test_stopped_rank_is_named_within_the_time_out(victim: int, config: Path, tmp_path: Path) -> None:
    """Rank 0 holds the store that the pulses go through, so its silence is another case."""
    run, timeout = tmp_path / "run", 20
    changed = ("train.steps=10000", f"train.hang_timeout_s={timeout}")
    with Job(STAGE1, "--config", config, f"output={run}", *changed, folder=tmp_path) as job:
        job.until(lambda: 3 in losses(run))
        os.kill(job.rank_pid(victim), signal.SIGSTOP)
        start = time.monotonic()
        status = job.wait(timeout + 30)
        assert status != 0
        assert time.monotonic() - start > timeout - 5, "ended before anything could be judged hung"
        assert f"watchdog: no progress for {timeout} s (rank {1 - victim}" in job.output
        assert f"watchdog: rank {victim} on" in job.output
        assert "has no pulse" in job.output
        assert re.search(
            r"in (update|fetch)\b", job.output
        )  # the stack of the rank that waited: either is collective


def test_bad_configuration_is_one_line_on_one_rank(config: Path, tmp_path: Path) -> None:
    with Job(STAGE1, "--config", config, "train.micro_bach=4", folder=tmp_path) as job:
        status = job.wait()
        assert status == 2
        assert job.output.count("error: train.micro_bach: unknown key; nearest valid key is train.micro_batch") == 1
        assert "Traceback" not in job.output


def test_too_many_unreadable_images_stop_with_shard_and_key(config: Path, shapes: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with ShardWriter(broken, "broken") as writer:
        train = ShardSet(shapes / "train")
        for i in range(len(train)):
            sample = train.read(i)
            extension, image = sample.images[0]
            cut = image[: len(image) // 2] if i % 8 == 1 else image
            writer.add(Sample(sample.key, [(extension, cut)], sample.record))
    run = tmp_path / "run"
    changed = (f"output={run}", f"data.train=[{{path: {broken}}}]", "train.steps=200", "data.max_fault_share=0.005")
    with Job(STAGE1, "--config", config, *changed, folder=tmp_path) as job:
        status = job.wait()
    assert status == 2
    assert job.output.count("more than the tolerated 0.50%") == 1
    assert "watchdog" not in job.output  # the other rank leaves without a word
    assert "most recent call first" not in job.output
    assert "shard " in job.output
    assert "key 'easy-train-" in job.output
    assert "Traceback" not in job.output
    counted = [sum(v for k, v in line.items() if k.startswith("faults/")) for line in metrics(run)]
    assert counted[-1] >= 3
    listed = [json.loads(line) for line in (run / "faults.jsonl").read_text().splitlines()]
    assert {fault["key"] for fault in listed} <= {train.index.key(i) for i in range(1, len(train), 8)}
