"""Stand-ins for `python` and `deepspeed` that start a job of one process in no time, for tests of what launch scripts
do around jobs: a server that has imported the code already forks a process per job, with the job's own arguments,
environment, folder and outputs. The launcher itself, and several ranks, have tests of their own in tests/e2e.

    python tests/launch/warm.py SOCKET          the server; tests/launch/conftest.py starts it and writes the commands
"""

import contextlib
import json
import os
import runpy
import socket
import sys
import traceback
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, socket, sys
words = sys.argv[1:]
script = next((n for n, word in enumerate(words) if word.endswith(".py")), None)
if script is None or {python_command} and not words[script].startswith(("tools/", "src/fiber/")):
    os.execv({python!r}, [{python!r}, *words])
words = words[script:]
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    job = json.dumps(dict(words=words, folder=os.getcwd(), environment=dict(os.environ))).encode()
    socket.send_fds(server, [len(job).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(job)
    status = server.recv(1)
sys.exit(status[0] if status else 1)
"""


def write_commands(folder: Path, address: Path) -> None:
    """`deepspeed` and `python` (warm for this project's entrypoints and tools), to be put first on PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("deepspeed", "python"):
        file = folder / name
        words = {"python": sys.executable, "address": str(address), "python_command": name == "python"}
        file.write_text(CLIENT.format(**words))
        file.chmod(0o755)


def serve(address: Path) -> None:
    """One job after the other, until this process is ended."""
    # What every job would import, the compiler that DeepSpeed's optimizers pull in most of all.

    import fiber.stage1_coarse
    import fiber.stage2_fine  # noqa: F401

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen()
        Path(f"{address}.new").rename(address)  # whoever sees it can connect
        while True:
            connection, _ = listener.accept()
            with connection:
                header, files, *_ = socket.recv_fds(connection, 8, 3)
                job = b""
                while len(job) < int.from_bytes(header, "big"):
                    job += connection.recv(1 << 20)
                child = os.fork()
                if child == 0:
                    run(json.loads(job), files)
                for file in files:
                    os.close(file)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(bytes([status if status >= 0 else 128 - status]))


def run(job: dict, files: list[int]) -> None:
    """Become the job; does not return."""
    status = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.environ.clear()
        os.environ.update(job["environment"])
        os.chdir(job["folder"])
        sys.argv = job["words"]
        sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
        runpy.run_path(
            os.path.realpath(sys.argv[0]), run_name="__main__"
        )  # from the root, for processes that it spawns
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
