"""What a long job shows: one line in a terminal, plain lines elsewhere, and the right phase, unit, rate and time."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from fiber import countdown
from fiber.countdown import Countdown
from fiber.evaluation.progress import Progress

NESTED = """
import time
from fiber import countdown
from fiber.countdown import Countdown

countdown.EVERY_TERMINAL = countdown.EVERY_LOG = 0.0
shown = Countdown("training", 3, "steps", leave=True)
for step in range(3):
    shown.note = "8.0 pairs per second, loss: itc 1.430, mlm 4.930"
    shown.add()
    for _ in Countdown("evaluating, texts", 2, "batches").over([1, 2]):
        pass
    if step == 1:
        shown.say("step 1: loss not finite")
shown.close()
"""


def in_terminal(script: str, columns: int) -> str:
    """All that a script writes to a terminal of so many columns."""
    main, worker = pty.openpty()
    fcntl.ioctl(worker, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen([sys.executable, "-c", script], stdout=worker, stderr=worker, close_fds=True)
    os.close(worker)
    out = b""
    try:
        while part := os.read(main, 4096):
            out += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(main)
    assert child.wait(60) == 0, out
    return out.decode()


def screen(written: str, columns: int) -> list[str]:
    """The lines that a terminal shows in the end: of its language only what we may use, everything else fails."""
    lines, at = [""], 0
    for part in re.findall(r"\r\n|\r|\x1b\[K|[^\r\n\x1b]+|.", written, re.S):
        if part == "\r\n":
            lines, at = [*lines, ""], 0
        elif part == "\r":
            at = 0
        elif part == "\x1b[K":
            lines[-1] = lines[-1][:at]
        else:
            assert part.isprintable(), repr(part)
            lines[-1] = lines[-1][:at] + part + lines[-1][at + len(part) :]
            at += len(part)
            assert at < columns, f"a line breaks: {lines[-1]}"
    return [line for line in lines if line]


@pytest.mark.parametrize("columns", [200, 60])
def test_a_job_in_a_job_leaves_a_clean_terminal(columns: int) -> None:
    shown = screen(in_terminal(NESTED, columns), columns)
    assert shown[0] == "step 1: loss not finite"
    assert re.match(r"training: 3 of 3 steps, [\d.]+ steps per second, 0:00:0", shown[1])
    assert len(shown) == 2
    assert ("loss: itc 1.430, mlm 4.930" in shown[1]) == (columns == 200)


def test_a_file_or_a_pipe_gets_plain_lines() -> None:
    done = subprocess.run([sys.executable, "-c", NESTED], capture_output=True, check=True, timeout=60)
    lines = done.stderr.decode().splitlines()
    assert all(line.isprintable() and line for line in lines)
    phases = [line.partition(":")[0] for line in lines]
    assert phases.count("training") == 4  # three steps and the end
    assert phases.count("evaluating, texts") == 9
    assert "evaluating, texts: 1 of 2 batches" in done.stderr.decode()
    assert not done.stdout


def test_a_log_gets_a_line_every_half_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(countdown.time, "monotonic", lambda: now[0])
    shown = Countdown("embed", 1_000)
    shown.skip(600)  # by an earlier run: the time left is that of this one
    now[0] = 20.0
    shown.add(50)
    assert capsys.readouterr().err == ""
    now[0] = 40.0
    shown.add(50)
    assert capsys.readouterr().err == "embed: 700 of 1,000 images, 2.5 images per second, 0:02:00 left\n"
    shown.add(1)
    assert capsys.readouterr().err == ""
    shown.close()
    shown.close()
    assert capsys.readouterr().err == "embed: 701 of 1,000 images, 2.5 images per second, 0:01:58 left\n"


def test_what_is_hidden_or_short_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Countdown("reading", 3, "records").over("abc")) == ["a", "b", "c"]
    hidden = Countdown("training", 3, "steps", show=False, leave=True)
    hidden.add(3)
    hidden.close()
    assert capsys.readouterr().err == ""
    list(Countdown("converting coco", leave=True).over("ab"))
    assert re.fullmatch(r"converting coco: 2 images, [\d.]+ images per second\n", capsys.readouterr().err)


def test_an_evaluation_says_what_it_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(countdown, "EVERY_LOG", 0.0)
    beats: list[int] = []
    assert list(Progress(show=True, beat=lambda: beats.append(1))([7, 8], "captions")) == [7, 8]
    assert len(beats) == 2
    assert re.match(
        r"evaluating, captions: 1 of 2 batches, [\d.]+ batches per second, 0:00:00 left\n", capsys.readouterr().err
    )
    assert list(Progress()(iter([7]), "captions", 1)) == [7]
    assert capsys.readouterr().err == ""


def test_nothing_of_ours_uses_bars_that_move_the_cursor() -> None:
    repo = Path(__file__).resolve().parents[1]
    for path in [*(repo / "src").rglob("*.py"), *(repo / "tools").glob("*.py")]:
        assert not re.search(r"^\s*(?:from|import) tqdm", path.read_text(), re.M), path
