"""Record the golden curves again:

    python -m tests.golden.record [NAME ...]

Record where a change of the numbers is meant (another order of random numbers, a mended loss), and only the curves
that change by it; say in the commit which curves change and why. A refactoring records nothing: its curves are equal
to the last digit on the machine type named in the files. On another type the same command gives files to compare
with; do not commit them, unless that type is to be the one that guards from then on. The commit in a file is the code
that trained, with "-dirty" where it was changed and not committed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from runs import KINKS, REPO, RUNS, TOLERANCE, curve, machine, make_data, prepare, run_all


def main() -> None:
    """Train every run and write its file."""
    names = sys.argv[1:] or list(RUNS)
    describe = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(describe, cwd=REPO, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        run_all(names, folder)
        for run in names:
            script, arguments = prepare(run, folder)
            lines = [
                f"# {RUNS[run][1]} rank(s): {' '.join([script.name, *arguments[2:]])}",
                f"# commit {commit.strip()}",
                f"# machine {machine()}",
                f"# equal to the last digit on this machine type, else within {TOLERANCE} (relative or absolute), "
                f"grad_norm within {KINKS}",
            ]
            for step, values in curve(folder / run):
                lines.append(" ".join([str(step), *(f"{k}={v!r}" for k, v in sorted(values.items()))]))
            Path(__file__).with_name(f"{run}.txt").write_text("\n".join(lines) + "\n")
            print(run, len(lines) - 4, "steps")


if __name__ == "__main__":
    main()
