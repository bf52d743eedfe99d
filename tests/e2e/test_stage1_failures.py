"""Trouble ends the whole job, in time, with a message that says what and who."""

import os
import signal
import time
from pathlib import Path

import pytest
from launcher import STAGE1, Job, losses


def test_killed_rank_is_named(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Job(STAGE1, "--config", config, f"output={run}", "train.steps=10000", folder=tmp_path) as job:
        job.until(lambda: 3 in losses(run))
        os.kill(job.rank_pid(1), signal.SIGKILL)
        status = job.wait(40)
        assert status != 0
        assert "watchdog: rank 1 on" in job.output
        assert "has no pulse" in job.output


@pytest.mark.parametrize("victim", [0, 1])
def test_stopped_rank_is_named_within_the_time_out(victim: int, config: Path, tmp_path: Path) -> None:
    """Rank 0 holds the store that the pulses go through, so its silence is another case."""
    run, timeout = tmp_path / "run", 20
    changed = ("train.steps=10000", f"train.hang_timeout_s={timeout}")
    with Job(STAGE1, "--config", config, f"output={run}", *changed, folder=tmp_path) as job:
        job.until(lambda: 3 in losses(run))
        os.kill(job.rank_pid(victim), signal.SIGSTOP)
        start = time.monotonic()
        status = job.wait(timeout + 20)
        assert status != 0
        assert time.monotonic() - start > timeout - 5, "ended before anything could be judged hung"
        assert f"watchdog: no progress for {timeout} s (rank {1 - victim}" in job.output
        assert f"watchdog: rank {victim} on" in job.output
        assert "has no pulse" in job.output
        assert "in update" in job.output  # the stack of the rank that waited


def test_bad_configuration_is_one_line_on_one_rank(config: Path, tmp_path: Path) -> None:
    with Job(STAGE1, "--config", config, "train.micro_bach=4", folder=tmp_path) as job:
        status = job.wait(60)
        assert status == 2
        assert job.output.count("error: train.micro_bach: unknown key; nearest valid key is train.micro_batch") == 1
        assert "Traceback" not in job.output
