"""`fiber convert`, from the clone: python tools/convert_checkpoint.py SRC DST [options]."""

import sys
from collections.abc import Sequence

from fiber.cli import main as command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; -> exit status."""
    return command.main(["convert", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
