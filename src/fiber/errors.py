"""Errors that name what is wrong and where: known ones end a run in one line, faults of samples are counted."""

from __future__ import annotations

import errno
import re

INTERRUPTED = 75
"""Exit status of a job that a signal has stopped: saved, not finished (EX_TEMPFAIL: try again)."""


class SampleFault(Exception):
    """One sample is unusable. `reason` is a short countable word ("undecodable_image"), the message says the rest."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, str(self))


class KnownError(Exception):
    """An error whose message says all that a user needs: one line, no traceback, exit status 2."""


class DataFaultError(KnownError, RuntimeError):
    """More samples are unusable than the run tolerates; names the last shard and key."""


class ShardError(KnownError, ValueError):
    """A set of shards is missing, out of date or misused; one line that says what to do."""


class ConfigError(KnownError, ValueError):
    """A configuration that cannot run; the message is one line naming the key and the fix."""


class WeightsError(KnownError, ValueError):
    """Weights that do not fit a model, or a file that is not what it is taken for; the message says what to do."""


class NonFiniteError(KnownError, RuntimeError):
    """The loss or the gradient is not finite more often than tolerated; names the step and the samples."""


class SaveError(KnownError, OSError):
    """A checkpoint cannot be written."""


class Interrupted(Exception):
    """A signal has stopped the run, and it was saved: it is not finished."""


# What an error's text says -> what to do about it.
HINTS = {
    "shared memory": "too little shared memory: enlarge /dev/shm (docker run --shm-size=8g), or set data.workers=0",
    "No space left on device": "the disk is full: make room, the same command goes on",
    "DataLoader worker (pid": "a loader worker ended, mostly for want of memory or /dev/shm: lower data.workers",
    "Too many open files": "too many open files: raise `ulimit -n`, or lower data.workers",
    "received 0 items of ancdata": "too many open files: raise `ulimit -n`, or lower data.workers",
    "address already in use": "the port of the job is in use: set MASTER_PORT to another, or leave it out",
}
# Errors of the system whose cause lies outside of the program.
NAMES = "ENOSPC EDQUOT EROFS EACCES EPERM ENOENT ENOTDIR EISDIR EEXIST EMFILE ENFILE EIO ESTALE"
OUTSIDE = {getattr(errno, name) for name in NAMES.split(" ")}


def one_line(error: BaseException) -> str | None:
    """What a user needs to know of an error, also of one that comes out of a loader worker; None for a fault of the
    program, which needs its traceback."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[-1] if "Original Traceback" in str(error) else lines[0]
    if isinstance(error, KeyboardInterrupt):
        return "interrupted before there was anything to save"
    if isinstance(error, KnownError):
        return text.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ") if len(lines) > 1 else text
    for sign, hint in HINTS.items():
        if sign in str(error):
            return f"{hint} ({text:.200})"
    return text if isinstance(error, OSError) and error.errno in OUTSIDE else None


def without_secrets(text: str) -> str:
    """A text whose URLs have lost user, password and query (signatures), for messages and what is published."""
    return re.sub(r"(\w://)[^\s/@]*@", r"\1", re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text))
