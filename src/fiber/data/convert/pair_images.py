"""Images of one's own pairs that are no files of their own: behind URLs, as base64 in a text file, in Parquet.

All are read where the samples are made, in the workers: what goes to a worker is a place, not an image.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request as WebRequest
from urllib.request import urlopen

from fiber.data.convert.items import ConversionError, RawImage, UnusableItem
from fiber.errors import without_secrets

FETCH_BYTES = 50_000_000  # of one image; a larger answer is given up
FETCH_SECONDS = 30.0  # for one image, and 10 without a word
_BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkqA", "TU0AK")  # how images of the usual kinds begin
_CHUNK = 1 << 16


def is_url(value: str) -> bool:
    """Whether a text names an image on the web. No other scheme is followed."""
    return value[:8].lower().startswith(("http://", "https://"))


def is_base64(value: str) -> bool:
    """Whether a text is an image itself; a path has no such beginning, or a dot."""
    return value.startswith("data:image/") or (len(value) >= 64 and value.startswith(_BASE64) and "." not in value)


def decoded(value: str) -> bytes:
    """The bytes of an image that is written as base64, with or without `data:image/...;base64,` before it."""
    try:
        return base64.b64decode(value.rpartition(",")[2])
    except (binascii.Error, ValueError) as error:
        raise UnusableItem("broken image", f"base64: {error}") from None


def url_name(url: str) -> str:
    """A URL as part of an image id: without user, password and query, which may be a key; two of one path that differ
    there stay apart."""
    parts = urlsplit(url)
    mark = hashlib.blake2b(url.encode(), digest_size=4).hexdigest()
    return f"{parts.hostname or ''}{parts.path}" + (f"-{mark}" if parts.query else "")


@dataclass(frozen=True)
class UrlImage(RawImage):
    """An image on the web; `paths` has its URL."""

    def read(self) -> bytes:
        """The bytes of the answer, fetched again in every try. Raises UnusableItem("not fetched")."""
        url = self.paths[0]
        try:
            return _fetch(url)
        except (OSError, HTTPException, ValueError) as error:
            raise UnusableItem("not fetched", f"{without_secrets(url)}: {without_secrets(str(error))}") from None


def _fetch(url: str) -> bytes:
    ends = time.monotonic() + FETCH_SECONDS
    data = bytearray()
    request = WebRequest(url, headers={"User-Agent": "fiber"})
    with urlopen(request, timeout=10) as answer:
        while chunk := answer.read(_CHUNK):
            data += chunk
            if len(data) > FETCH_BYTES:
                raise ValueError(f"larger than {FETCH_BYTES // 10**6} MB")
            if time.monotonic() > ends:
                raise ValueError(f"not there after {FETCH_SECONDS:.0f} seconds")
    return bytes(data)


@dataclass(frozen=True)
class RowImage(RawImage):
    """An image inside of a row of a text file: `length` bytes from `offset`. rows: the file (pair_rows.RowFile)."""

    rows: Any = None

    def read(self) -> bytes:
        """The image that the row has."""
        with open(self.paths[0], "rb") as file:
            row = self.rows.parse(os.pread(file.fileno(), self.length or 0, self.offset), "")
        return decoded(row[0])


@dataclass(frozen=True)
class ParquetImage(RawImage):
    """An image in a binary column of a Parquet file: row `offset` of row group `length`."""

    column: str = ""

    def read(self) -> bytes:
        """Its bytes. The row group is kept until another is asked for: rows come in their order."""
        value = _row_group(self.paths[0], self.length or 0, self.column)[self.offset].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise UnusableItem("missing image", f"{self.paths[0]}: no bytes in {self.column!r}")
        return bytes(data)


@lru_cache(maxsize=1)
def _row_group(path: str, group: int, column: str) -> Any:
    return parquet_file(Path(path)).read_row_group(group, columns=[column]).column(0)


def parquet_file(path: Path) -> Any:
    """An open Parquet file. Raises ConversionError where it is broken, or pyarrow is not installed."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ConversionError(f"{path}: Parquet is read by pyarrow: pip install pyarrow") from None
    try:
        return ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise ConversionError(f"{path}: not a Parquet file: {error}") from None
