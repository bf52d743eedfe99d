"""`fiber report`: a page to look at of what a run has learned and where it fails."""

import argparse
from pathlib import Path

from fiber.cli.numbers import whole_number

DESCRIPTION = """A page of a run: headline figures beside baselines, curves, tables, and images ordered by error:

    fiber report runs/demo/stage2

writes runs/demo/stage2/report; open its index.html in any browser. A run makes it at its end by itself.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--out", type=Path, help="folder of the report (default: RUN/report)")
    parser.add_argument(
        "--images", type=whole_number(1), default=1000, help="most images shown, the worst ones (default 1000)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write it; -> exit status."""
    from fiber.evaluation.report import make_report

    print(make_report(arguments.run, arguments.out, arguments.images))
    return 0
