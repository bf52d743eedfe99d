"""The Slurm script, with stand-ins for Slurm's commands: queued again until the run is finished."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fiber.errors import INTERRUPTED

REPO = Path(__file__).resolve().parents[2]
COMMANDS = {
    "python": f'exec {sys.executable} "$@"',  # a machine need have none outside of the environment
    "srun": "exit ${TRAINING:-0}",
    "scontrol": 'if [[ $1 == requeue ]]; then echo "requeued $2"; else echo node-a; fi',
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A repository as the script sees it, in an environment that is active already."""
    for name in ("launch", "configs", "src"):
        (tmp_path / name).symlink_to(REPO / name)
    for name, body in COMMANDS.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{body}\n")
        file.chmod(0o755)
    return tmp_path


def submit(home: Path, *arguments: str, training: int = 0) -> subprocess.CompletedProcess:
    """Runs the script as a job, whose ranks end with the exit status `training`."""
    slurm = {"SLURM_SUBMIT_DIR": str(home), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-a"}
    paths = {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(REPO / "src")}
    environment = os.environ | slurm | paths | {"TRAINING": str(training)}
    command = ["bash", "launch/nodes.slurm", *arguments]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_job_is_queued_again_until_it_is_finished(home: Path, stage: str) -> None:
    """By the exit status alone: the summary may be that of a shorter run."""
    command = (stage, f"configs/{stage}/shapes_tiny.yaml", "output=runs/a")
    (home / "runs" / "a").mkdir(parents=True)
    (home / "runs" / "a" / "summary.json").touch()
    assert "requeued 7" in submit(home, *command, training=INTERRUPTED).stdout
    job = submit(home, *command)
    assert (job.returncode, job.stdout) == (0, ""), job.stderr


@pytest.mark.parametrize("status", [1, 2, 137])
def test_a_job_that_failed_is_not_queued_again(home: Path, status: int) -> None:
    job = submit(home, "stage1", "configs/stage1/shapes_tiny.yaml", training=status)
    assert (job.returncode, job.stdout) == (status, "")


def test_a_stage_that_is_none_is_one_line(home: Path) -> None:
    job = submit(home, "configs/stage1/shapes_tiny.yaml")
    assert job.returncode == 2
    assert job.stderr.startswith("error: STAGE is stage1 or stage2")


def test_the_environment_of_the_repository_is_activated_where_there_is_one(home: Path) -> None:
    (home / ".venv" / "bin").mkdir(parents=True)
    (home / ".venv" / "bin" / "activate").write_text("echo activated")
    assert submit(home, "stage1", "configs/stage1/shapes_tiny.yaml").stdout == "activated\n"


def test_a_job_from_another_folder_is_one_line(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    script, elsewhere = home / "launch" / "nodes.slurm", tmp_path_factory.mktemp("elsewhere")
    environment = os.environ | {"SLURM_SUBMIT_DIR": str(elsewhere), "SLURM_JOB_ID": "7"}
    command = ["bash", script, "stage1", "configs/stage1/shapes_tiny.yaml"]
    job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (job.returncode, job.stderr) == (2, f"error: {elsewhere}: call sbatch in the repository's folder\n")
