"""The table of ODinW's sets, or of one's own: AP of each and their mean, few-shot over seeds.

    python tools/odinw_table.py RUNS [--suite {13,35}] [--allow-missing] [--json OUT]

RUNS: what launch/odinw.sh fills, RUNS/SET/{zero_shot,full_MODE,K_shot_MODE_SEED}. A column is of the set that the
weights were chosen by, or of the test set. The mean is over the sets in it, with --suite over those of ODinW, whose
folders must have the names that tools/make_shards.py gives them. Where a set lacks a figure there is no mean: exit
status 1, and its name, unless --allow-missing. Few-shot subsets that are not the published ones are named below. The
last line of stdout is a JSON summary.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from odinw import SUITES, drawn_subsets, read_runs, table


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--suite", choices=SUITES)
    parser.add_argument("--allow-missing", action="store_true", help="a mean over the sets that have a figure")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args(argv)
    try:
        scores = read_runs(arguments.runs)
        sets = SUITES[arguments.suite] if arguments.suite else sorted({name for name, _ in scores})
        text, cells = table(scores, sets, arguments.allow_missing)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    summary = json.dumps({s: {name: asdict(cell) for name, cell in column.items()} for s, column in cells.items()})
    if arguments.json:
        arguments.json.write_text(summary + "\n")
    print(text)
    if drawn := drawn_subsets(arguments.runs):
        print(f"\nfew-shot subsets drawn by tools/few_shot.py, not the published ones: {', '.join(drawn)}")
    print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
