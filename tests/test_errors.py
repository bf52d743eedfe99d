"""Which errors are one line, and what it says."""

import errno
from pathlib import Path

import pytest
from torch._utils import ExceptionWrapper

from fiber.errors import DataFaultError, SaveError, ShardError, one_line


def from_worker(error: Exception) -> Exception:
    """As a loader worker's error arrives in the training process."""
    try:
        raise error
    except Exception:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    try:
        wrapped.reraise()
    except Exception as arrived:
        return arrived
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataFaultError("too many"), "too many"),
        (SaveError("run/checkpoints cannot be written: full"), "run/checkpoints cannot be written: full"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a/b"), "[Errno 21] Is a directory: 'a/b'"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "[Errno 13] Permission denied: 'a'"),
        (from_worker(ShardError("index.json is damaged")), "index.json is damaged"),
        (KeyboardInterrupt(), "interrupted before there was anything to save"),
        (ValueError("a fault of ours"), None),
        (OSError("of no kind"), None),
    ],
)
def test_what_is_known_is_one_line(error: BaseException, expected: str | None) -> None:
    assert one_line(error) == expected


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "data.workers"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "data.workers"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space (28)"), "--shm-size"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "the disk is full"),
        (from_worker(OSError(errno.EMFILE, "Too many open files")), "ulimit -n"),
        (RuntimeError("The server socket has failed\nEADDRINUSE, message: address already in use"), "MASTER_PORT"),
    ],
)
def test_what_the_machine_lacks_comes_with_what_to_do(error: Exception, hint: str) -> None:
    line = one_line(error)
    assert line is not None
    assert hint in line
    assert "\n" not in line


def test_a_full_disk_is_a_real_one() -> None:
    with pytest.raises(OSError, match="No space") as caught:
        Path("/dev/full").write_text("x" * 100_000)
    assert "No space left on device" in str(one_line(caught.value))
