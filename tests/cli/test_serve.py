"""`fiber serve`: a process that answers this machine and ends by Ctrl-C."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image

from fiber.cli.main import main
from tiny_exports import coarse_export


def test_it_answers_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    export = coarse_export(tmp_path / "run" / "export")
    with serving(tmp_path / "run") as (process, said):
        assert said.startswith("run: ")
        with urlopen(address_in(said), timeout=60) as page:
            assert b"<title>fiber</title>" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(export), "--port", str(taken.getsockname()[1])]) == 1
    assert "choose another with --port" in capsys.readouterr().err


def test_it_ends_while_it_is_asked(tmp_path: Path) -> None:
    """Questions that are being computed neither hold Ctrl-C up nor abort the process."""
    coarse_export(tmp_path / "run" / "export")
    image = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(image, "PNG")
    answered = threading.Semaphore(0)

    def ask(address: str) -> None:
        with suppress(OSError):  # the server ends meanwhile
            while True:
                urlopen(f"{address}ask?verb=match&text=a+red+ball", image.getvalue(), timeout=60).close()
                answered.release()

    for _ in range(3):  # without os._exit some 13 of 15 fail
        with serving(tmp_path / "run") as (process, said):
            asking = [threading.Thread(target=ask, args=(address_in(said),)) for _ in range(4)]
            for thread in asking:
                thread.start()
            for _ in asking:
                assert answered.acquire(timeout=60)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            for thread in asking:
                thread.join(timeout=60)
        while answered.acquire(blocking=False):
            pass


@contextmanager
def serving(run: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """-> the process, and the line that it begins with."""
    command = [sys.executable, "-m", "fiber.cli.main", "serve", str(run), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


def address_in(line: str) -> str:
    address = re.search(r"http://127\.0\.0\.1:\d+/", line)
    assert address is not None, line
    return address[0]
