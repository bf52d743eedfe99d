"""What `fiber train` and `fiber eval` share: from a configuration and the machine to a running job."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fiber.cli.config import find, kind_of
from fiber.cli.numbers import whole_number
from fiber.errors import ConfigError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What a scheduler sends before its limit: the ranks save and leave."""

NO_EVALUATION = ("eval.data=[]", "train.best=null", "train.stop_after=0")
PORTS = range(20_000, 32_000)
"""Of which a job takes one; Linux gives those from 32,768 to outgoing connections."""


def options(parser: argparse.ArgumentParser) -> None:
    """The options of both verbs."""
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="keys of the configuration")
    parser.add_argument(
        "--ranks", type=whole_number(1), help="processes on this machine (default: one per GPU; 1 without)"
    )
    parser.add_argument(
        "--port", type=whole_number(1, 65_535), help="of the job (default: a free one; 29500 on several machines)"
    )
    nodes = parser.add_argument_group("several machines (they share the package, the shards and the output folder)")
    nodes.add_argument("--hostfile", type=Path, help="lines `NAME slots=GPUS`; the launcher reaches them by ssh")
    nodes.add_argument(
        "--node-rank", type=whole_number(0), help="without ssh: this machine's line of the host file, from 0"
    )
    nodes.add_argument("--master-addr", help="without ssh: name of the first machine")


@dataclass(frozen=True)
class Launch:
    """A configuration and what is changed in it. `script`: the entrypoint of its stage."""

    file: Path
    overrides: list[str]
    script: Path

    @classmethod
    def of(cls, name: str, overrides: Sequence[str], mode: str) -> Launch:
        """name: a file, a shipped name or a run directory; `data=S` is written out. Raises ConfigError."""
        from fiber.config.loading import read_tree

        folder = Path(name)
        if (folder / "config.yaml").is_file():
            file, overrides = folder / "config.yaml", [f"output={folder}", *overrides]
        else:
            file = find(name)
        short = [word for word in overrides if word.startswith("data=") and not word.startswith("data={")]
        plain = [word for word in overrides if word not in short]
        tree = read_tree(file, plain)
        for word in short:
            made = paths_of(tree, Path(word.removeprefix("data=")), mode)
            # The user's words come after these: what he asks of an evaluation that is not there is checked, not lost.
            resets = [one for one in made if one in NO_EVALUATION]
            plain = [*resets, *plain, *(one for one in made if one not in NO_EVALUATION)]
            if resets:
                print(f"{word}: no val or test, nothing is evaluated", file=sys.stderr)
        told = {word.partition("=")[0] for word in plain}
        if "init_from" in told and tree.get("init_from") and tree.get("tokenizer") and "tokenizer" not in told:
            plain = ["tokenizer=null", *plain]  # the model has its own, which that of the recipe need not be
        script = "stage1_coarse.py" if kind_of(tree, file).__name__ == "Stage1Config" else "stage2_fine.py"
        return cls(file, plain, Path(__file__).resolve().parents[1] / script)

    def words(self, mode: str) -> list[str]:
        """The entrypoint and its arguments."""
        return [str(self.script), "--config", str(self.file), "--mode", mode, *self.overrides]


def paths_of(tree: dict[str, Any], folder: Path, mode: str) -> list[str]:
    """Overrides that put one's own shards into every source of a configuration.

    folder: a set, or a folder of sets `train`, `val`, `test`. Training reads `train` and evaluates on `val`, or else
    `test`; mode "eval" reads `test`, or else `val`. Raises ConfigError.
    """
    if (folder / "dataset.json").is_file():
        there = {"train": folder, "eval": folder if mode == "eval" else None}
    else:
        splits = {name: folder / name for name in ("train", "val", "test") if (folder / name).is_dir()}
        order = ("test", "val") if mode == "eval" else ("val", "test")
        there = {"train": splits.get("train"), "eval": next((splits[n] for n in order if n in splits), None)}
    if there["train" if mode == "train" else "eval"] is None:
        raise ConfigError(f"data={folder}: no shards to {mode} on; give a set, or a folder of train, val and test")
    out: list[str] = []
    for section, key in (("data", "train"), ("eval", "data")):
        sources = (tree.get(section) or {}).get(key) or []
        path = there["train" if section == "data" else "eval"]
        if path is None:
            out += NO_EVALUATION if section == "eval" else []
        else:
            out += [f"{section}.{key}.{i}.path={path}" for i in range(len(sources))]
    return out


# ---------------------------------------------------------------------------------------------- the machine


def cards() -> list[str]:
    """The GPUs of this machine that the job may use: their numbers, or what CUDA_VISIBLE_DEVICES calls them."""
    tool = shutil.which("nvidia-smi")
    if os.environ.get("DS_ACCELERATOR") == "cpu" or tool is None:
        return []
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False).stdout.splitlines()
    found = [line.split()[1].rstrip(":") for line in listed if line.startswith("GPU ")]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not found or chosen is None:
        return found
    return [card for part in chosen.split(",") if (card := part.strip()) not in ("", "-1")]


def free_port() -> int:
    """A port that nothing listens on, below those that the system gives to outgoing connections: one of these may be
    gone before the job listens, which takes seconds. Raises OSError where none is free."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))  # on every address, as the job will
            return port
    raise OSError(f"no free port among {PORTS[0]} to {PORTS[-1]}: choose one by --port or MASTER_PORT")


def batches(overrides: Sequence[str], file: Path, ranks: int) -> list[str]:
    """Overrides by which the global batch is shared by `ranks` processes; none where it is already, or where the user
    has given both sizes himself (the entrypoint says what does not add up)."""
    from fiber.config.base import TrainConfig
    from fiber.config.loading import read_tree

    given = read_tree(file, overrides).get("train") or {}
    if given.get("preset", TrainConfig.preset) != "off":  # the entrypoint chooses both sizes
        return []
    whole, micro, accumulation = (
        given.get(key, getattr(TrainConfig, key)) for key in ("global_batch", "micro_batch", "accumulation")
    )
    sizes = (whole, micro, accumulation)
    told = {override.partition("=")[0] for override in overrides}
    if any(type(size) is not int or size < 1 for size in sizes) or micro * accumulation * ranks == whole:
        return []
    if "train.accumulation" in told or whole % ranks:
        return []
    share = whole // ranks
    fitting = next(size for size in range(min(micro, share), 0, -1) if share % size == 0)
    if fitting != micro and "train.micro_batch" in told:
        return []
    print(
        f"global batch {whole} on {ranks} rank{'s' * (ranks > 1)}: train.micro_batch={fitting} "
        f"train.accumulation={share // fitting}",
        file=sys.stderr,
    )
    return [f"train.micro_batch={fitting}", f"train.accumulation={share // fitting}"]


# ---------------------------------------------------------------------------------------------- starting


def start(job: Launch, mode: str, arguments: argparse.Namespace) -> int:
    """Run the job to its end; -> its exit status (75: stopped by a signal and saved)."""
    if find_spec("deepspeed") is None:  # said here in one line, not by every rank
        raise ModuleNotFoundError("the extra `train` is not installed", name="deepspeed")
    environment = dict(os.environ)
    if "RANK" in environment and "WORLD_SIZE" in environment:  # srun, torchrun: this process is one rank of a job
        os.execv(sys.executable, [sys.executable, "-u", *job.words(mode)])
    if arguments.hostfile is not None:
        with tempfile.NamedTemporaryFile("w", suffix=".env") as exported:
            for name in environment_names(environment):
                print(f"{name}={environment[name]}", file=exported)
            exported.flush()
            environment["DS_ENV_FILE"] = exported.name
            return wait([*launcher(), *on_nodes(arguments), *job.words(mode)], environment, launched=True)
    numbers = cards()
    ranks = arguments.ranks or max(len(numbers), 1)
    if numbers and ranks > len(numbers):
        raise ConfigError(f"--ranks {ranks}: this machine lets the job use {len(numbers)} GPUs")
    if ranks > 1 and not all(number.isdecimal() for number in numbers):  # parts of cards (MIG), say
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={','.join(numbers)}: for several ranks give numbers of nvidia-smi -L"
        )
    if not numbers:
        environment["DS_ACCELERATOR"] = "cpu"
        cores = len(os.sched_getaffinity(0))
        environment.setdefault("OMP_NUM_THREADS", str(max(cores // ranks, 1)))  # more threads than cores: 4 x slower
    words = job.words(mode) + (batches(job.overrides, job.file, ranks) if mode == "train" else [])
    if ranks == 1:  # nothing to launch: a few seconds less
        if numbers:
            environment["CUDA_VISIBLE_DEVICES"] = numbers[0]
        return wait([sys.executable, "-u", *words], environment)
    where = ["--include", f"localhost:{','.join(numbers[:ranks])}"] if numbers else ["--num_gpus", str(ranks)]
    port = ["--master_port", str(arguments.port or environment.get("MASTER_PORT") or free_port())]
    return wait([*launcher(), "--quiet", *where, *port, *words], environment, launched=True)


def launcher() -> list[str]:
    """The deepspeed launcher of this environment."""
    return [sys.executable, "-m", "deepspeed.launcher.runner"]


def on_nodes(arguments: argparse.Namespace) -> list[str]:
    """The launcher's options for several machines. Raises ConfigError."""
    if not arguments.hostfile.is_file():
        raise ConfigError(f"--hostfile {arguments.hostfile}: no such file")
    out = ["--hostfile", str(arguments.hostfile), "--master_port", str(arguments.port or 29500)]
    if arguments.master_addr:
        out += ["--master_addr", arguments.master_addr]
    if arguments.node_rank is not None:
        if not arguments.master_addr:
            raise ConfigError("--node-rank: needs --master-addr, the name of the first machine")
        out += ["--no_ssh", "--node_rank", str(arguments.node_rank)]
    return out


def environment_names(environment: dict[str, str]) -> list[str]:
    """Variables that go to the other machines; NCCL_* and PYTHON* travel by themselves."""
    names = ("OMP_NUM_THREADS", "DS_ACCELERATOR", "GLOO_SOCKET_IFNAME", "HF_HOME", "HF_HUB_OFFLINE")
    return [name for name in environment if name in names or name.startswith("WANDB_")]


def wait(command: Sequence[str], environment: dict[str, str], launched: bool = False) -> int:
    """Run a command to its end, handing it what a scheduler signals; Ctrl-C reaches the ranks, which save. -> exit
    status."""
    # Ignored is inherited: the launcher must live until its ranks have saved. A rank alone handles Ctrl-C itself.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if launched else lambda *_: None)
    process = subprocess.Popen(command, env=environment)
    old = {number: signal.signal(number, lambda number, _: process.send_signal(number)) for number in SIGNALS}
    try:
        status = process.wait()
    finally:
        for number, handler in {**old, signal.SIGINT: before}.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status
