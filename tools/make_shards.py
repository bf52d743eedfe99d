"""`fiber shards` under its older name: python tools/make_shards.py DATASET --raw DIR --out DIR [options]"""

import sys
from collections.abc import Sequence

from fiber.cli.main import main as fiber


def main(arguments: Sequence[str] | None = None) -> int:
    """-> exit status: 0 done, 1 a clear error, 2 wrong usage."""
    return fiber(["shards", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
