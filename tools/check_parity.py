"""Compare this project with tensors recorded from the reference implementation.

    python tools/check_parity.py PREFIX ...        # e.g. ../shared/parity/fine_a ../shared/parity/coarse_a

For each fixture: loads its weights under their released names, runs this project's model with the configuration in
its json, and prints a table output / max abs error / relative error / tolerance / ok. Exits 1 if anything failed.
"""

import argparse
import sys

import torch

from fiber import distributed
from parity_coarse import check_coarse
from parity_common import Fixture, Report
from parity_fine import check_fine


def main() -> int:
    """Check every fixture named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", nargs="+", help="path of a fixture without .json")
    parser.add_argument("--failures", action="store_true", help="print only the rows that failed")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    # Parity is of formulas: oneDNN picks convolutions by processor, and some of them lose a digit where a group norm
    # of a nearly constant map magnifies it.
    torch.backends.mkldnn.enabled = False
    distributed.choose_kernels(exact=True)
    failed = 0
    for prefix in arguments.prefix:
        try:
            fixture = Fixture.load(prefix)
            report = {"fine": check_fine, "coarse": check_coarse}[fixture.stage](fixture)
        except (FileNotFoundError, ValueError) as error:
            print(f"{prefix}: {error}", file=sys.stderr)
            failed += 1
            continue
        failed += print_table(fixture, report, arguments.failures)
    return 1 if failed else 0


def print_table(fixture: Fixture, report: Report, failures: bool) -> int:
    """Print the rows of a report; returns how many failed."""
    width = max(len(row.output) for row in report.rows)
    print(f"{fixture.name} ({fixture.stage})")
    print(f"{'output':<{width}}  {'max abs':>9}  {'relative':>9}  {'tolerance':>11}  ok")
    for row in report.rows:
        if not (failures and row.ok):
            mark = "yes" if row.ok else "NO"
            print(f"{row.output:<{width}}  {row.max_abs:9.2e}  {row.relative:9.2e}  {row.tolerance:>11}  {mark}")
    bad = sum(not row.ok for row in report.rows)
    print(f"{fixture.name}: {len(report.rows) - bad} of {len(report.rows)} ok\n")
    return bad


if __name__ == "__main__":
    raise SystemExit(main())
