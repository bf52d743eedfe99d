"""The launch scripts, with a stand-in for `deepspeed` that prints how it was called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder of commands: four cards, a launcher that prints its words, and Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    bodies = {
        "nvidia-smi": 'for n in 0 1 2 3; do echo "GPU $n: NVIDIA (UUID: GPU-$n)"; done',
        "deepspeed": 'echo "$*"; [[ " $* " == *" --mode eval "* ]] && echo evaluated; exit ${STATUS:-0}',
    }
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    return folder


def launch(
    commands: Path, script: str, *words: str, folder: Path = REPO, **variables: str
) -> subprocess.CompletedProcess:
    # Not through launch/ itself: an environment in the checkout would put the real launcher first.
    home = commands.parent / "home"
    if not home.exists():
        home.mkdir()
        for name in ("launch", "configs", "src"):
            (home / name).symlink_to(REPO / name)
    environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}"} | variables
    for name in ("RANKS", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        if name not in variables:
            environment.pop(name, None)
    where = home if folder == REPO else folder
    return subprocess.run(
        ["bash", str(home / "launch" / script), *words],
        cwd=where, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "chosen"),
    [
        ({}, "localhost:0,1,2,3"),
        ({"RANKS": "2"}, "localhost:0,1"),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, "localhost:2,3"),
        ({"CUDA_VISIBLE_DEVICES": "3,1,0", "RANKS": "2"}, "localhost:3,1"),
    ],
)
def test_the_cards_that_were_given_are_used(commands: Path, variables: dict[str, str], chosen: str) -> None:
    job = launch(commands, "stage1_coarse.sh", "configs/stage1/shapes_tiny.yaml", **variables)
    assert f"--include {chosen} --master_port" in job.stdout, job.stderr


@pytest.mark.parametrize(
    ("variables", "seen"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2,3", "RANKS": "1"}, "2"),
        ({"CUDA_VISIBLE_DEVICES": "3"}, "3"),
        ({"CUDA_VISIBLE_DEVICES": "", "RANKS": "1"}, ""),
        ({"CUDA_VISIBLE_DEVICES": "-1", "RANKS": "1"}, "-1"),
        ({"CUDA_VISIBLE_DEVICES": "MIG-8c1f,MIG-77aa", "RANKS": "1"}, "MIG-8c1f"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1"}, "GPU-1"),
    ],
)
def test_one_rank_is_not_launched(commands: Path, variables: dict[str, str], seen: str) -> None:
    """It is the job itself: Ctrl-C and a scheduler's signal reach it, its exit status is the script's."""
    (commands / "python").unlink()
    (commands / "python").write_text('#!/usr/bin/env bash\necho "$CUDA_VISIBLE_DEVICES: $*"; exit 75\n')
    (commands / "python").chmod(0o755)
    job = launch(commands, "stage2_fine.sh", "my.yaml", "train.steps=3", **variables)
    assert job.stdout == f"{seen}: -u src/fiber/stage2_fine.py --config my.yaml train.steps=3\n"
    assert job.returncode == 75


def test_no_cards_and_cards_without_a_number(commands: Path) -> None:
    job = launch(commands, "stage2_fine.sh", "configs/stage2/shapes_tiny.yaml", CUDA_VISIBLE_DEVICES="")
    assert "--num_gpus 2 " in job.stdout
    for variables in ({"CUDA_VISIBLE_DEVICES": "-1"}, {"DS_ACCELERATOR": "cpu"}):
        assert "--num_gpus 2 " in launch(commands, "stage2_fine.sh", "my.yaml", **variables).stdout
    job = launch(commands, "stage2_fine.sh", "configs/stage2/shapes_tiny.yaml", CUDA_VISIBLE_DEVICES="GPU-1,GPU-2")
    assert (job.returncode, job.stdout) == (2, "")
    assert job.stderr.startswith("error: CUDA_VISIBLE_DEVICES=GPU-1,GPU-2: for several ranks give numbers")


def test_more_ranks_than_cards_are_refused(commands: Path) -> None:
    job = launch(commands, "stage1_coarse.sh", "my.yaml", RANKS="4", CUDA_VISIBLE_DEVICES="2,3")
    assert (job.returncode, job.stdout) == (2, "")
    assert job.stderr == "error: RANKS=4: there are 2 GPUs (2,3)\n"


def test_every_job_has_a_port_of_its_own_unless_told(commands: Path) -> None:
    ports = set()
    for _ in range(2):
        words = launch(commands, "stage1_coarse.sh", "configs/stage1/shapes_tiny.yaml").stdout.split()
        ports.add(words[words.index("--master_port") + 1])
    assert len(ports) == 2
    job = launch(commands, "stage1_coarse.sh", "configs/stage1/shapes_tiny.yaml", MASTER_PORT="29501")
    assert "--master_port 29501 " in job.stdout


@pytest.mark.parametrize("word", ["my.yaml", "output=runs/a", "tokenizer=tokenizer"])
def test_relative_paths_from_elsewhere_are_refused(commands: Path, tmp_path: Path, word: str) -> None:
    (tmp_path / "elsewhere" / "tokenizer").mkdir(parents=True)
    job = launch(commands, "stage1_coarse.sh", word, "train.steps=3", folder=tmp_path / "elsewhere")
    assert (job.returncode, job.stdout) == (2, "")
    assert job.stderr.startswith(f"error: {word}: a relative path")
    assert job.stderr.count("\n") == 1
    words = (str(tmp_path / "my.yaml"), f"output={tmp_path}/a", "train.steps=3")
    job = launch(commands, "stage1_coarse.sh", *words, folder=tmp_path / "elsewhere")
    assert " ".join(words) in job.stdout


@pytest.mark.parametrize(
    ("script", "variable"),
    [
        ("shapes_stage1.sh", "OUT"),
        ("shapes_stage1.sh", "RUN"),
        ("shapes_stage2.sh", "STAGE1"),
        ("coarse_to_fine.sh", "SHAPES"),
        ("demo.sh", "OUT"),
        ("detection.sh", "KEEP"),
        ("shapes_region_tasks.sh", "STAGE2"),
    ],
)
def test_relative_folders_from_elsewhere_are_refused(
    commands: Path, tmp_path: Path, script: str, variable: str
) -> None:
    (tmp_path / "elsewhere" / "mine").mkdir(parents=True)
    job = launch(commands, script, folder=tmp_path / "elsewhere", **{variable: "mine"})
    assert (job.returncode, job.stdout) == (2, "")
    assert job.stderr.startswith(f"error: {variable}=mine: a relative path")


def test_the_demo_deletes_nothing_but_a_demo(commands: Path, tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").touch()
    job = launch(commands, "demo.sh", OUT=str(tmp_path / "papers"))
    assert job.returncode == 2
    assert job.stderr.startswith(f"error: OUT={tmp_path}/papers holds other things than an earlier demo")
    assert (tmp_path / "papers" / "thesis.tex").exists()


@pytest.mark.parametrize(("start", "steps"), [("towers", ("200", "600")), ("nothing", ("840", "1450"))])
def test_the_demo_begins_with_towers_or_with_nothing(
    commands: Path, tmp_path: Path, start: str, steps: tuple[str, str]
) -> None:
    (commands / "python").unlink()
    (commands / "python").write_text('#!/usr/bin/env bash\necho "said $*"\n')
    (commands / "python").chmod(0o755)
    job = launch(
        commands, "demo.sh", OUT=str(tmp_path / "demo"), START=start, CUDA_VISIBLE_DEVICES="", MASTER_PORT="29501"
    )
    assert job.returncode == 0, job.stderr
    coarse, fine = (
        next(line.split() for line in job.stdout.splitlines() if f"/{stage}.py" in line)
        for stage in ("stage1_coarse", "stage2_fine")
    )
    assert (f"train.steps={steps[0]}" in coarse, f"train.steps={steps[1]}" in fine) == (True, True)
    towers = "src/fiber/data/shapes/towers"
    words = {f"model.image.pretrained={towers}/image.safetensors", f"model.text.pretrained={towers}/text"}
    assert words & set(coarse) == (words if start == "towers" else set())
    assert (tmp_path / "demo/tokenizer/tokenizer.json").exists() == (start == "towers")
    assert launch(commands, "demo.sh", OUT=str(tmp_path / "other"), START="stage1").returncode == 2


def test_a_chain_ends_where_training_was_stopped(commands: Path) -> None:
    job = launch(commands, "retrieval.sh", "output=/tmp/never", STATUS="75")
    assert (job.returncode, job.stdout.count("\n")) == (75, 1)
    job = launch(commands, "retrieval.sh", "output=/tmp/never")
    assert (job.returncode, "evaluated" in job.stdout) == (0, True)
