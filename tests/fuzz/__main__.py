"""Thousands of mutated inputs for every reader: python -m tests.fuzz --cases 5000 --seed 1 [--reader NAME]."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path += [str(Path(__file__).resolve().parent)]
from harness import GOOD, Case, campaign, markdown, run_case
from readers import READERS, Inputs


def main() -> int:
    """Prints bad endings as they come and the table of outcomes; status 1 if there is a bad one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", default="", help=f"part of a name: {', '.join(READERS)}")
    parser.add_argument("--only", type=int, help="one case, by its number")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Inputs(Path(scratch) / "whole")
        if options.only is not None:
            names = [name for name in READERS if options.reader in name]
            print(run_case(Case(names[0], options.seed, options.only), inputs, Path(scratch) / "run"))
            return 0
        began = time.monotonic()
        table = campaign(options.cases, options.seed, Path(scratch) / "run", inputs, options.reader)
    print(markdown(table))
    print(f"seed {options.seed}: {options.cases} cases in {time.monotonic() - began:.0f} s")
    return int(any(count for counts in table.values() for outcome, count in counts.items() if outcome not in GOOD))


if __name__ == "__main__":
    sys.exit(main())
