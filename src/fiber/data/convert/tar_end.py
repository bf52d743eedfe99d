"""The end of a tar: tarfile stops without a word at a damaged header, as if nothing came after it."""

import os

from fiber.data.indexing import BLOCK


def missing_end(path: str | os.PathLike[str], end: int) -> str | None:
    """What is wrong where reading a tar has stopped, `end` bytes from its beginning; None where it is whole, which
    means that a block of zeros follows."""
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(BLOCK) == bytes(BLOCK):
            return None
        size = file.seek(0, os.SEEK_END)
    return f"no end-of-archive mark at byte {end} of {size}"
