"""Guards a job against dead and hung ranks."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

from fiber.distributed import GRACE_S, gather_objects, rank, world_size

_LOST_PEER = (
    "onnection closed by peer",
    "onnection reset by peer",
    "onnection refused",
    "Timed out waiting",
    "Broken pipe",
)
Pulse = tuple[int, int, str]  # counter, step and phase of a rank


class Watchdog:
    """Ends this rank when it makes no progress for `timeout_s`, and says which rank the job was waiting for.

    A thread of every rank writes a pulse (counter, step, phase) to the launcher's key-value store every
    `period_s`. When the loop has not called `beat` for `timeout_s`, the thread compares two readings of all
    pulses: ranks without one are stopped or dead; if all have one, those furthest behind are named. It prints
    that, dumps the stacks, kills pulseless ranks of its own host (a stopped process ignores the launcher's
    SIGTERM) and exits with status 1; the launcher then ends the job. `faulthandler` is armed a little later, for
    the case that no Python thread can run any more.
    """

    def __init__(self, timeout_s: float, period_s: float = 0.5) -> None:
        self.timeout_s, self.period_s = timeout_s, period_s
        self._step, self._phase, self._count = 0, "starting", 0
        self._last = time.monotonic()
        self._members = gather_objects((socket.gethostname(), os.getpid()))
        self._stop, self._suspicion = threading.Event(), threading.Event()
        self._store = _connect_store()
        faulthandler.register(signal.SIGUSR2, all_threads=True)  # loader workers inherit it
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._watch, self._follow)]
        for thread in self._threads:
            thread.start()
        self.beat(0, "starting")

    def beat(self, step: int, phase: str) -> None:
        """Progress: the loop enters `phase` ("data", "compute", "evaluation", ...) of `step`."""
        self._step, self._phase, self._last = step, phase, time.monotonic()
        faulthandler.dump_traceback_later(self.timeout_s + 2 * GRACE_S, exit=True)

    def suspect(self) -> None:
        """Look at the other ranks' pulses now and report those without (on SIGTERM: a launcher sends it when a
        rank has died)."""
        self._suspicion.set()

    def close(self) -> None:
        self._phase = "finished"
        self._pulse()
        self._stop.set()
        faulthandler.cancel_dump_traceback_later()
        for thread in self._threads:
            thread.join(timeout=5.0)

    def leave(self, said: str, status: int) -> NoReturn:
        """End the job with what this rank has to say, on stderr. Of several ranks that come here one speaks, rank 0
        if it is among them; the watchdogs of the others end them without a word. Takes a second or two."""
        self.beat(self._step, "ending")
        if rank() != 0:
            time.sleep(3 * self.period_s)
        if self._store is None:
            print(f"\n{said}", file=sys.stderr, flush=True)
        else:
            with suppress(RuntimeError):  # the store is gone with rank 0, which has spoken or has been named
                if self._store.add("ending/first", 1) == 1:
                    where = "" if rank() == 0 else f" (rank {rank()} on {socket.gethostname()})"
                    print(f"\n{said}{where}", file=sys.stderr, flush=True)
                    self._store.set("ending", str(status))
                    deadline = time.monotonic() + 10 * self.period_s
                    others = world_size() - 1 if rank() == 0 else 0
                    while self._store.add("ending/left", 0) < others and time.monotonic() < deadline:
                        time.sleep(0.1)
                else:
                    self._store.add("ending/left", 1)
        self.close()  # a thread that still calls C++ while Python ends would abort the process
        sys.exit(status)

    def end(self, why: str, only_if_missing: bool = False) -> None:
        """Print `why`, the state of the other ranks and all stacks, and end this process with status 1.

        Ranks of this host without a pulse are killed: a stopped process would keep the launcher waiting. With
        `only_if_missing` nothing happens unless some rank has no pulse. Where another rank has said why the job ends,
        this one adds nothing. Takes a few seconds.
        """
        for _ in range(3):  # the other rank may be about to say so
            time.sleep(self.period_s)
            self._pulse()
        lines, pids = self._diagnose()
        # A rank that has closed meanwhile needs nobody any more: others may have left, and the store with rank 0.
        if only_if_missing and (self._stop.is_set() or not any("no pulse" in line for line in lines)):
            return
        me = f"rank {rank()} on {socket.gethostname()}, in {self._phase} of step {self._step}"
        print("\n".join([f"\nwatchdog: {why} ({me})", *(f"watchdog: {line}" for line in lines)]), file=sys.stderr)
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        for worker in multiprocessing.active_children():  # what a worker that is waited for does
            if worker.pid is not None:
                os.kill(worker.pid, signal.SIGUSR2)
                time.sleep(0.1)  # their stacks one after the other
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        os._exit(1)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Where a collective fails because another rank has gone, name that rank and end this one with status 1."""
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, dist.DistError) or any(sign in str(error) for sign in _LOST_PEER)
            if not lost:
                raise
            self.end(f"a collective failed: {' '.join(str(error).split()):.200}")

    def _watch(self) -> None:
        while not self._stop.wait(self.period_s):
            self._pulse()
            if self._suspicion.is_set():
                self._suspicion.clear()
                self.end("asked to end", only_if_missing=True)
            if time.monotonic() - self._last > self.timeout_s:
                self.end(f"no progress for {self.timeout_s:g} s")

    def _pulse(self) -> None:
        self._count += 1
        if self._store is not None:
            with suppress(RuntimeError):  # the store is gone with rank 0; the time-out still ends this rank
                self._store.set(f"pulse/{rank()}", json.dumps([self._count, self._step, self._phase]))

    def _follow(self) -> None:
        """End this process, with its status, when another rank ends the job (see `leave`). A thread with a connection
        of its own: where rank 0 is stopped, the store does not answer."""
        with suppress(RuntimeError):
            store = _connect_store()
            while store is not None and not self._stop.wait(self.period_s) and self._phase != "ending":
                if store.check(["ending"]):
                    status = int(store.get("ending"))
                    store.add("ending/left", 1)
                    if rank() == 0:
                        time.sleep(3 * self.period_s)  # the others still use the store
                    os._exit(status)

    def _diagnose(self) -> tuple[list[str], list[int]]:
        """-> (one line per suspicious rank, pids of those on this host that have no pulse)."""
        if self._store is None:
            return [], []
        readings: list[list[Pulse | None]] = []
        reader = threading.Thread(target=self._read_twice, args=(readings,), daemon=True)
        reader.start()
        for _ in range(8):
            reader.join(timeout=self.period_s)
            self._pulse()  # this may be the thread that does so otherwise
        who = [f"rank {r} on {host} (pid {pid})" for r, (host, pid) in enumerate(self._members)]
        if len(readings) == 2:
            before, pulses = readings
            changed = [old != new for old, new in zip(before, pulses, strict=True)]
            silent = [r for r, p in enumerate(pulses) if p is None or not (changed[r] or p[2] == "finished")]
        else:  # the store does not answer: it lives with rank 0
            pulses, silent = [None] * len(who), [0]
        if silent:
            last = [f" since {p[2]} of step {p[1]}" if p else "" for p in pulses]
            here = socket.gethostname()
            pids = [pid for r, (host, pid) in enumerate(self._members) if r in silent and host == here]
            return [f"{who[r]} has no pulse{last[r]}" for r in silent], pids
        alive = [(r, step, phase) for r, (_, step, phase) in enumerate(filter(None, pulses))]  # all ranks
        behind = min((step, phase != "data") for _, step, phase in alive)
        waiting = [rank for rank in alive if (rank[1], rank[2] != "data") == behind]
        return [f"{who[r]} is alive in {phase} of step {step}" for r, step, phase in waiting], []

    def _read_twice(self, readings: list[list[Pulse | None]]) -> None:
        keys = [f"pulse/{r}" for r in range(world_size())]
        with suppress(RuntimeError):
            store = _connect_store()  # waiting for an answer, a connection is closed to everybody else
            assert store is not None  # `_diagnose` says so
            for wait in (0.0, 3 * self.period_s):
                time.sleep(wait)
                readings.append([json.loads(store.get(k)) if store.check([k]) else None for k in keys])


def _connect_store() -> dist.TCPStore | None:
    """A separate connection to the launcher's store (the group's is busy while a collective waits on it)."""
    if world_size() == 1:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
