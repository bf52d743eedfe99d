"""From a configuration and the machine to the command of a job, with stand-ins for cards and for the process."""

import os
import signal
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from fiber.cli import launcher, main
from fiber.errors import ConfigError

MINE = {
    "output": "run", "tokenizer": "tok", "regions": {"flip": 0.5}, "train": {"global_batch": 8, "micro_batch": 4},
    "data": {"train": [{"path": "a", "field": "captions"}, {"path": "b", "field": "boxes"}]},
    "eval": {"data": [{"path": "c", "field": "boxes"}]},
}  # fmt: skip

NEEDS = ['deepspeed<0.20,>=0.19.6; extra == "train"']


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: mine.yaml, sets S/train, S/val and S/test; no job around."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(MINE))
    for split in ("train", "val", "test"):
        (tmp_path / "S" / split).mkdir(parents=True)
        (tmp_path / "S" / split / "dataset.json").write_text("{}")
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """What would have been started: words, environment."""
    calls: list[tuple[list[str], dict[str, str]]] = []

    def wait(words: list[str], environment: dict[str, str], launched: bool = False) -> int:
        environment = (
            {**environment, "exported": Path(environment["DS_ENV_FILE"]).read_text()}
            if ("DS_ENV_FILE" in environment)
            else environment
        )
        calls.append((list(words), environment))
        return 75

    monkeypatch.setattr(launcher, "wait", wait)
    return calls


def cards(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """A machine with so many cards."""
    tool = folder / "bin" / "nvidia-smi"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f'#!/bin/sh\nfor n in $(seq 0 {number - 1}); do echo "GPU $n: NVIDIA (UUID: GPU-$n)"; done\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)


def test_without_the_extra_that_trains_it_is_one_line(
    folder: Path, started: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    monkeypatch.setattr(metadata, "requires", lambda _: NEEDS)
    assert main.main(["train", "mine.yaml", "data=S"]) == 1
    assert capsys.readouterr().err == 'error: deepspeed is not installed: pip install "fiber-vl[train]"\n'
    assert not started


def test_one_process_on_the_cpu(folder: Path, started: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert main.main(["train", "mine.yaml", "train.steps=3"]) == 75  # the job's status
    words, environment = started[0]
    assert words[:2] == [sys.executable, "-u"]
    assert words[2].endswith("fiber/stage2_fine.py")
    assert words[3:] == [
        "--config", "mine.yaml", "--mode", "train", "train.steps=3", "train.micro_batch=4", "train.accumulation=2",
    ]  # fmt: skip
    assert environment["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("variables", "options", "where"),
    [
        ({}, [], "localhost:0,1,2,3"),
        ({}, ["--ranks", "2"], "localhost:0,1"),
        ({"CUDA_VISIBLE_DEVICES": "3,1"}, [], "localhost:3,1"),
    ],
)
def test_the_cards_that_were_given(
    folder: Path, started: list, monkeypatch: pytest.MonkeyPatch, variables: dict, options: list[str], where: str
) -> None:
    cards(monkeypatch, folder, 4)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    main.main(["train", "mine.yaml", *options])
    words, environment = started[0]
    assert words[words.index("--include") + 1] == where
    assert 1024 < int(words[words.index("--master_port") + 1]) < 65536
    assert "DS_ACCELERATOR" not in environment
    main.main(["train", "mine.yaml", "--ranks", "1"])
    assert started[1][1]["CUDA_VISIBLE_DEVICES"] == where[10]
    assert "--include" not in started[1][0]


def test_cards_that_cannot_be_had(
    folder: Path, started: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    cards(monkeypatch, folder, 2)
    assert main.main(["train", "mine.yaml", "--ranks", "3"]) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-8c1f,MIG-77aa")
    assert main.main(["train", "mine.yaml"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: --ranks 3: this machine lets the job use 2 GPUs",
        "error: CUDA_VISIBLE_DEVICES=MIG-8c1f,MIG-77aa: for several ranks give numbers of nvidia-smi -L",
    ]
    assert not started
    main.main(["train", "mine.yaml", "--ranks", "1"])  # one rank may have any part of a card
    assert started[0][1]["CUDA_VISIBLE_DEVICES"] == "MIG-8c1f"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    main.main(["train", "mine.yaml"])
    assert started[1][1]["DS_ACCELERATOR"] == "cpu"


def test_a_model_to_start_from_brings_its_tokenizer(folder: Path) -> None:
    def overrides(*words: str) -> list[str]:
        return launcher.Launch.of("mine.yaml", words, "train").overrides

    assert overrides("init_from=model") == ["tokenizer=null", "init_from=model"]
    for words in (["init_from=model", "tokenizer=mine"], ["init_from=null"], ["seed=3"]):
        assert overrides(*words) == words


def test_several_machines(folder: Path, started: list, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "hosts").write_text("a slots=8\nb slots=8\n")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    main.main(["train", "mine.yaml", "--hostfile", "hosts"])
    words, environment = started[0]
    assert words[3:7] == ["--hostfile", "hosts", "--master_port", "29500"]
    assert "WANDB_PROJECT=mine\n" in environment["exported"]
    main.main(["train", "mine.yaml", "--hostfile", "hosts", "--node-rank", "1", "--master-addr", "a"])
    assert started[1][0][7:12] == ["--master_addr", "a", "--no_ssh", "--node_rank", "1"]
    assert main.main(["train", "mine.yaml", "--hostfile", "hosts", "--node-rank", "1"]) == 1
    assert main.main(["train", "mine.yaml", "--hostfile", "nowhere"]) == 1


def test_under_another_launcher_it_is_one_rank(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")

    class Replaced(Exception):
        pass

    def execv(path: str, words: list[str]) -> None:
        raise Replaced(words)

    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(Replaced, match=r"mine\.yaml"):
        main.main(["train", "mine.yaml"])


@pytest.mark.parametrize(
    ("given", "ranks", "added"),
    [
        ([], 2, []),  # 4 x 1 x 2 = 8 already
        ([], 4, ["train.micro_batch=2", "train.accumulation=1"]),
        (["train.global_batch=24"], 1, ["train.micro_batch=4", "train.accumulation=6"]),
        (["train.global_batch=6"], 1, ["train.micro_batch=3", "train.accumulation=2"]),
        (["train.accumulation=3"], 1, []),  # the user's word: the run says that it does not add up
        (["train.micro_batch=3"], 1, []),
        ([], 3, []),
        (["train.global_batch=many"], 1, []),
    ],
)
def test_the_global_batch_is_shared_by_the_ranks(
    folder: Path, given: list[str], ranks: int, added: list[str]
) -> None:
    assert launcher.batches(given, folder / "mine.yaml", ranks) == added


def test_data_is_short_for_every_source(folder: Path, capsys: pytest.CaptureFixture) -> None:
    def overrides(words: list[str], mode: str) -> list[str]:
        return launcher.Launch.of("mine.yaml", words, mode).overrides

    train = ["data.train.0.path=S/train", "data.train.1.path=S/train"]
    assert overrides(["data=S"], "train") == [*train, "eval.data.0.path=S/val"]
    assert overrides(["data=S"], "eval") == [*train, "eval.data.0.path=S/test"]
    assert overrides(["data=S/val"], "eval") == [
        "data.train.0.path=S/val", "data.train.1.path=S/val", "eval.data.0.path=S/val",
    ]  # fmt: skip
    nothing = ["eval.data=[]", "train.best=null", "train.stop_after=0"]
    assert overrides(["data=S/train"], "train") == [
        *nothing, "data.train.0.path=S/train", "data.train.1.path=S/train",
    ]  # fmt: skip
    assert capsys.readouterr().err == "data=S/train: no val or test, nothing is evaluated\n"
    # What the user asks of an evaluation that is not there comes last: it is checked, not dropped.
    assert overrides(["train.best=ap", "data=S/train"], "train")[:4] == [*nothing, "train.best=ap"]
    assert overrides(["data={workers: 0}"], "train") == ["data={workers: 0}"]  # the section itself
    with pytest.raises(ConfigError, match="data=nowhere: no shards to train on"):
        overrides(["data=nowhere"], "train")


def test_a_run_directory_is_enough_to_evaluate(folder: Path, started: list) -> None:
    (folder / "old").mkdir()
    (folder / "old" / "config.yaml").write_text(yaml.safe_dump(MINE | {"output": "elsewhere"}))
    main.main(["eval", "old", "eval.batch=2"])
    assert started[0][0][-6:] == ["--config", "old/config.yaml", "--mode", "eval", "output=old", "eval.batch=2"]


def test_the_stage_is_told_by_the_keys(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "either.yaml").write_text("output: run\ntokenizer: tok\n")
    (folder / "both.yaml").write_text("task: vqa\ndetector: {}\n")
    (folder / "one.yaml").write_text("task: vqa\n")
    assert launcher.Launch.of("one.yaml", [], "train").script.name == "stage1_coarse.py"
    assert main.main(["train", "either.yaml"]) == 1
    assert main.main(["train", "both.yaml"]) == 1
    assert main.main(["train", "stage2/odinv"]) == 1
    assert main.main(["train", "shapes_tiny"]) == 1
    assert main.main(["eval", "S"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("error: either.yaml could be of either stage: at image level give caption, finetune,")
    assert said[1].startswith("error: both.yaml has keys of both stages")
    assert said[2].endswith("did you mean stage2/odinw?")
    assert said[3].endswith("say stage1/shapes_tiny or stage2/shapes_tiny")
    assert said[4].startswith("error: S is a folder without config.yaml")


def test_a_signal_reaches_the_job_and_its_status_comes_back(tmp_path: Path) -> None:
    """A real process: SIGUSR1 to the command is the job's, and the job's status is the command's."""
    job = (
        "import signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    outer = (
        "import os, sys\nfrom fiber.cli import launcher\n"
        f"sys.exit(launcher.wait([sys.executable, '-c', {job!r}], dict(os.environ)))"
    )
    process = subprocess.Popen([sys.executable, "-c", outer])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)  # to the command alone: the rank would have its own from the terminal
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 75
    finally:
        process.kill()
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert launcher.wait([sys.executable, "-c", killed], dict(os.environ)) == 128 + 9


def test_the_launcher_itself_with_two_ranks(folder: Path) -> None:
    """Two ranks by deepspeed: their error in one line, their status is that of the command."""
    words = [sys.executable, "-m", "fiber.cli.main", "train", "mine.yaml", "--ranks", "2", "train.steps=none"]
    done = subprocess.run(
        words, env=os.environ | {"DS_ACCELERATOR": "cpu"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: train.steps: expected int, got 'none'\n")
    assert "Traceback" not in done.stderr
    assert not (folder / "run").exists()


def test_the_port_of_a_job_is_not_one_that_an_outgoing_connection_may_take() -> None:
    """Between the choice and the job's own use of it lie seconds of imports."""
    ports = {launcher.free_port() for _ in range(20)}
    assert len(ports) > 10
    outgoing = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(outgoing.read_text().split()[0]) if outgoing.exists() else 32768
    assert all(1024 < port < first for port in ports)
    with socket.socket() as taken, pytest.MonkeyPatch.context() as patch:
        taken.bind(("", 0))
        patch.setattr(launcher, "PORTS", [taken.getsockname()[1]] * 100)
        with pytest.raises(OSError, match="no free port"):
            launcher.free_port()
