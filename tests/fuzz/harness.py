"""Runs cases in children forked from one warm process, with bounds on time and memory, and says how each ended."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from readers import KNOWN, LINE, READERS, Inputs

SECONDS = 60  # of processor time and of the clock
MEMORY = 2 << 30  # bytes beyond what the warm process has
GOOD = ("ok", "counted", LINE)
OUTCOMES = (*GOOD, "traceback", "hang", "memory", "silent loss", "outside write", "died")


@dataclass(frozen=True)
class Case:
    """One mutated input: the reader, and the seed that everything about it comes from."""

    reader: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"python -m tests.fuzz --reader {self.reader} --seed {self.seed} --only {self.number}"


@dataclass(frozen=True)
class Ending:
    """How a case ended: one of OUTCOMES, and the line or the traceback."""

    outcome: str
    detail: str


def run_case(case: Case, inputs: Inputs, folder: Path) -> Ending:
    """The case in a child of its own, in FOLDER/case; whatever else appears below FOLDER is an outside write."""
    work, said = folder / "case", folder / "said"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    before = sorted(p.name for p in folder.iterdir())
    said.write_text("")
    child = os.fork()
    if child == 0:
        _child(case, inputs, work, said)
    status = _wait(child)
    lines = said.read_text(errors="replace").split("\n", 1)
    outside = {p.name for p in folder.iterdir()} - {*before, "said"}
    inside = [p for p in work.rglob("*pwned*")]
    if outside or inside or Path("/tmp/evil").exists():
        return Ending("outside write", f"{outside or inside}")
    if status is None:
        return Ending("hang", f"more than {SECONDS} s")
    if lines[0] not in OUTCOMES:
        return Ending("died", f"status {status}: {lines}")
    return Ending(lines[0], lines[1] if len(lines) > 1 else "")


def _wait(child: int) -> int | None:
    """The exit status, None where the time was up."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return None if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU else status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _child(case: Case, inputs: Inputs, work: Path, said: Path) -> None:
    """Never returns."""
    text = "died\n"
    try:
        os.chdir(work)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        os.environ["FIBER_CACHE"] = str(work / "cache")
        rng = np.random.default_rng([case.seed, case.number, sorted(READERS).index(case.reader)])
        text = READERS[case.reader](rng, inputs, work) + "\n"
    except KNOWN as error:
        text = f"{LINE}\n{error}"
        if "Traceback" in text or not str(error).strip():
            text = f"traceback\nno line: {error!r}"
    except MemoryError:
        text = f"memory\n{traceback.format_exc()}"
    except ValueError as error:  # a predictor's and a tokenizer's one line
        library = traceback.extract_tb(error.__traceback__)[-1].filename
        one = len(str(error).splitlines()) == 1 and "/src/fiber/" in library and "raise" in _last_line(error)
        text = f"{LINE}\n{error}" if one else f"traceback\n{traceback.format_exc()}"
    except BaseException:
        text = f"traceback\n{traceback.format_exc()}"
    finally:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        said.write_text(text, errors="replace")
        sys.stdout = sys.stderr = None
        os._exit(0)


def _last_line(error: BaseException) -> str:
    return traceback.extract_tb(error.__traceback__)[-1].line or ""


def campaign(cases: int, seed: int, folder: Path, inputs: Inputs, only: str = "") -> dict[str, Counter[str]]:
    """Runs cases in turn over the readers -> reader -> outcome -> number. Bad endings are printed with what repeats
    them."""
    table: dict[str, Counter[str]] = {name: Counter() for name in READERS if only in name}
    names = list(table)
    for number in range(cases):
        case = Case(names[number % len(names)], seed, number)
        ending = run_case(case, inputs, folder)
        table[case.reader][ending.outcome] += 1
        if ending.outcome not in GOOD:
            print(f"{ending.outcome}: {case}\n{ending.detail[-1800:]}\n", flush=True)
    return table


def markdown(table: dict[str, Counter[str]]) -> str:
    """The table of outcomes, one row a reader."""
    shown = [*GOOD, *(o for o in OUTCOMES if o not in GOOD and o != "died"), "died"]
    rows = ["| reader | cases | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
    total: Counter[str] = Counter()
    for name, counts in table.items():
        total += counts
        rows.append(f"| {name} | {sum(counts.values()):,} | " + " | ".join(f"{counts[o]:,}" for o in shown) + " |")
    rows.append(f"| all | {sum(total.values()):,} | " + " | ".join(f"{total[o]:,}" for o in shown) + " |")
    return "\n".join(rows)
