"""Shards that lie elsewhere: read whole and in sequence through webdataset, kept for a while in a local cache.

A remote set is named by a template, `pipe:aws s3 cp s3://bucket/coco/{} -` or `https://host/coco/{}` (without braces,
`/{}` is added), filled in with dataset.json, index.json, index.npz and the shards' names; or, where nobody made an
index, by the shards themselves, `pipe:cat /mnt/coco/train-{000000..000123}.tar`, which are read once to build one.
The processes of a machine share the cache ($FIBER_CACHE, by default ~/.cache/fiber): one fetches, the others wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.request import urlopen

from fiber.errors import ShardError, without_secrets

log = logging.getLogger(__name__)

ATTEMPTS = 3  # at fetching a file
WAIT_S = 2.0  # before another attempt
SHARD_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]{0,200}\.tar")
TIMEOUT_S = 10.0  # a web server may be silent; then a word, and another attempt


def _open_url(url: str) -> IO[bytes]:
    """A web server's answer, or what webdataset opens: pipes and the stores it knows. Raises OSError."""
    if url.startswith(("http://", "https://")):
        return urlopen(url, timeout=TIMEOUT_S)
    from webdataset import gopen

    return gopen(url, "rb")


def check_shard_name(name: Any, origin: Path | str) -> None:
    """Raises ShardError naming `origin` unless a name from outside is that of a tar in the same folder."""
    if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
        raise ShardError(
            f"{origin}: {name!r} is no name of a shard (letters, digits, . _ + - and .tar at the end); "
            "rename the file and delete index.json"
        )


class RemoteFolder:
    """A folder of shards behind commands or URLs, mirrored file by file.

    keep: shards that stay in the cache; the longest unused go first (a process that has one open goes on reading it).
    """

    def __init__(self, location: str, keep: int):
        self.keep = keep
        self.shards: dict[str, str] = {}  # name: URL, where the location lists the shards
        if "{" in location.replace("{}", ""):
            from webdataset.shardlists import expand_urls  # brings torch along: only where shards lie elsewhere

            self.shards = {f"{i:06d}.tar": url for i, url in enumerate(expand_urls(location))}
        self.template = location if "{" in location else location.rstrip("/") + "/{}"
        root = Path(os.environ.get("FIBER_CACHE", Path.home() / ".cache" / "fiber"))
        self.folder = root / "shards" / hashlib.sha256(location.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sha256: dict[str, str] = {}  # of the shards, once the index is there
        self._failed: dict[str, str] = {}

    @staticmethod
    def is_remote(location: str) -> bool:
        """Whether a data set's location is a pipe or a URL rather than a folder."""
        return location.startswith("pipe:") or "://" in location

    def fetch(self, name: str, again: bool = False) -> Path:
        """The local copy of a file, fetched if it is not there or `again`. Raises OSError where it cannot be had;
        this process does not try such a file again."""
        path = self.folder / name
        if name in self._failed:
            raise OSError(self._failed[name])
        if not again:
            with suppress(FileNotFoundError):  # never created here: an empty file would pass for the shard
                os.utime(path)
                return path
        with self._lock(name):
            if again or not path.exists():
                os.replace(self._download(name), path)
                self._evict()
        return path

    def fetch_index(self, again: bool = False) -> None:
        """Brings index.json and index.npz up to date; the arrays only where index.json, which has every shard's
        sha256, differs (or `again`). So the processes of a machine map one and the same file, and share its pages."""
        described, arrays = self.folder / "index.json", self.folder / "index.npz"
        with self._lock(described.name):
            new = self._download(described.name)
            same = described.exists() and arrays.exists() and new.read_bytes() == described.read_bytes()
            if again or not same:
                for stale in self.folder.glob("*.tar"):
                    stale.unlink(missing_ok=True)
                os.replace(self._download(arrays.name), arrays)  # first: cut off here, index.json differs next time
            os.replace(new, described)

    def open(self, name: str) -> int:
        """A descriptor of the local copy of a file. Raises OSError where it cannot be had."""
        for _ in range(ATTEMPTS):
            with suppress(FileNotFoundError):  # another process removed it between the two calls
                return os.open(self.fetch(name), os.O_RDONLY | os.O_CLOEXEC)
        raise OSError(f"{self.folder / name} goes as often as it is fetched: the cache holds too few shards")

    def _download(self, name: str) -> Path:
        """Fetches a file next to its local copy; the caller renames it."""
        url = self.shards.get(name) or self.template.replace("{}", name)
        aside = self.folder / f".{name}.{os.getpid()}"
        for attempt in range(ATTEMPTS):
            try:
                with _open_url(url) as source, open(aside, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                with open(aside, "rb") as whole:
                    if self.sha256.get(name) not in (None, hashlib.file_digest(whole, "sha256").hexdigest()):
                        raise OSError("its sha256 is not that of the index")
                break
            except (OSError, HTTPException) as error:
                aside.unlink(missing_ok=True)
                if attempt == ATTEMPTS - 1:
                    self._failed[name] = without_secrets(f"{url} cannot be read ({error})")
                    raise OSError(self._failed[name]) from None
                log.warning("%s", without_secrets(f"{url}: attempt {attempt + 1} failed: {error}"))
                time.sleep(WAIT_S)
        return aside

    def _evict(self) -> None:
        used: list[tuple[int, Path]] = []
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):  # another process evicts, too
                used.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(used)[: -self.keep]:
            path.unlink(missing_ok=True)

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with open(self.folder / f".{name}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
