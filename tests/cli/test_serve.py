"""`fiber serve`: a process that answers this machine and ends by Ctrl-C."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from fiber.cli.main import main
from tiny_exports import coarse_export


def test_it_answers_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    export = coarse_export(tmp_path / "run" / "export")
    command = [sys.executable, "-m", "fiber.cli.main", "serve", str(tmp_path / "run"), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert address is not None, line
        assert line.startswith("run: ")
        with urlopen(address[0], timeout=60) as page:
            assert b"<title>fiber</title>" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(export), "--port", str(taken.getsockname()[1])]) == 1
    assert "choose another with --port" in capsys.readouterr().err
