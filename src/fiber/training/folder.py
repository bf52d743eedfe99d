"""The folder of a run: files written whole, and one job at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from fiber.config.checks import require
from fiber.config.loading import load_config, to_dict, to_yaml
from fiber.errors import ConfigError, without_secrets
from fiber.training import zero


class RunLock:
    """Keeps a run's folder for this process until `close` or its death. Rank 0 only.

    Raises ConfigError where the folder cannot be written, or another job has it. A file system without locks is not
    guarded; that is said. (A lock of `fcntl`, not of `flock`: loader workers do not inherit it.)
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+")
        except OSError as error:
            raise ConfigError(f"output: {folder} cannot be written: {error.strerror}") from None
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                print(f"output: {folder} cannot be locked ({error.strerror}): for one job only", file=sys.stderr)
                return
            self._file.seek(0)
            raise ConfigError(
                f"output: {folder} is in use by {self._file.read().strip() or 'another job'}; stop that job, or give "
                "this one another output"
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def lost(self) -> bool:
        """Whether the folder has been removed or replaced since."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except OSError:
            return True

    def close(self) -> None:
        """Let others have the folder."""
        self._file.close()


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a kill or a full disk leaves the old one or the new one, nothing between."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    aside.write_text(text)
    sync(aside)
    os.replace(aside, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_folder(config: Any, folder: Path, latest: Path | None) -> None:
    """Write the resolved configuration and DeepSpeed's into a run's folder; say what changed since the run began, and
    what cannot be meant. Raises ConfigError for the run of another task."""
    if config.optim.warmup >= max(config.train.steps, 2):
        print("optim.warmup: no shorter than train.steps, so that the rate never gets to optim.lr", file=sys.stderr)
    now = _flat(to_dict(config))
    if latest is not None:
        print(f"going on from {latest}", file=sys.stderr)
        try:
            before = _flat(to_dict(load_config(type(config), folder / "config.yaml", lenient=True)))
        except ConfigError as error:
            print(f"  what has changed is not known: {folder / 'config.yaml'}: {error}", file=sys.stderr)
            before = now
        for key, value in now.items():
            was, value = str(before.get(key)), without_secrets(str(value))  # the file has none
            if was != value:
                print(f"  {key}: was {was}, is {value}", file=sys.stderr)
        task = before.get("task")
        require(task == now.get("task"), f"task: {folder} has a run of {task}; give this one another output")
    write_whole(folder / "config.yaml", to_yaml(config))
    engine = zero.deepspeed_json(config.train, config.optim.clip)
    write_whole(folder / "deepspeed.json", json.dumps(engine, indent=2))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
