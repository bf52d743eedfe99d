"""Starting real jobs with the `deepspeed` launcher, as a user does, and reading what they leave behind."""

import base64
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fiber.cli.launcher import free_port as free_port  # for the tests that start jobs

REPO = Path(__file__).resolve().parents[2]
STAGE1 = REPO / "src" / "fiber" / "stage1_coarse.py"
DEEPSPEED = Path(sys.executable).parent / "deepspeed"


def environment(folder: Path) -> dict[str, str]:
    """CPU, one thread a rank, and a folder of its own for compiled extensions, so that no stale lock of a killed
    build can hang the job."""
    return os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        "PATH": f"{DEEPSPEED.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPO / "src"),  # this checkout, whatever is installed
        "TOKENIZERS_PARALLELISM": "false",
    }


class Job:
    """A launched job: `deepspeed OPTIONS SCRIPT ARGUMENTS`, its output in a file. A context manager that leaves no
    process behind. Without options it is begun by what `deepspeed` itself starts on one machine, which spares an
    import of torch; two nodes and the demo begin with the whole command."""

    def __init__(self, script: Path, *arguments: object, folder: Path, ranks: int = 2, options: tuple = ()) -> None:
        command: list[object] = [DEEPSPEED, *options]
        if not options:
            world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(ranks))}).encode()).decode()
            command = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world}"]
            command += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
        command += [script, *arguments]
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"job_{time.monotonic_ns()}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(folder),
                cwd=folder,
                start_new_session=True,
            )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        for member in processes_of_session(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        self.process.wait()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float = 600.0) -> int:
        """Exit status of the launcher; the output is in the error if it takes too long."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the job is still running after {timeout} s\n{self.output}") from None

    def succeed(self, timeout: float = 600.0) -> str:
        """Wait for exit status 0 -> the output."""
        status = self.wait(timeout)
        assert status == 0, f"exit status {status}\n{self.output}"
        return self.output

    def until(self, condition: Callable[[], bool], timeout: float = 300.0) -> None:
        """Wait until `condition()` holds while the job runs."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"the job has ended ({self.process.poll()})\n{self.output}"
            assert time.monotonic() < deadline, f"waited {timeout} s\n{self.output}"
            time.sleep(0.05)

    def rank_pid(self, rank: int) -> int:
        """The process id of a rank (ranks run `python -u SCRIPT`; their RANK is in their environment)."""
        for pid in processes_of_session(self.process.pid):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
                launched = b"deepspeed.launcher.launch" in Path(f"/proc/{parent}/cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"-u" in words and f"RANK={rank}".encode() in variables and launched:
                return pid
        raise AssertionError(f"no process of rank {rank}\n{self.output}")


def processes_of_session(session: int) -> list[int]:
    """Process ids that belong to a session (a job starts one of its own)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def metrics(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl (an unfinished last line is left out)."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]


def losses(run: Path, name: str = "loss/total") -> dict[int, float]:
    """step -> loss as logged."""
    return {line["step"]: line[name] for line in metrics(run) if name in line}


def seeded(low: int, high: int) -> int:
    """A number in [low, high] that differs from day to day, so that many are tried; a failure names it, and
    FIBER_TEST_SEED=SEED repeats it."""
    seed = int(os.environ.get("FIBER_TEST_SEED", time.strftime("%Y%m%d")))
    number = random.Random(seed).randint(low, high)
    print(f"FIBER_TEST_SEED={seed}: {number}")
    return number
