"""`fiber inspect` under its older name: python tools/inspect_shards.py DIR [--verify] [--contact-sheet OUT.png]"""

import sys
from collections.abc import Sequence

from fiber.cli.main import main as fiber


def main(arguments: Sequence[str] | None = None) -> int:
    """-> exit status: 0 fine, 1 a clear error or damage found."""
    return fiber(["inspect", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
