"""Record the golden curves anew:

    python tests/golden/record.py [NAME ...]

Needed only where a change of the numbers is meant; say in the commit which curves change and why.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from runs import REPO, RUNS, TOLERANCE, curve, machine, make_data, prepare, run_all


def main() -> None:
    """Train every run and write its file."""
    names = sys.argv[1:] or list(RUNS)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPO, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        run_all(names, folder)
        for run in names:
            script, arguments = prepare(run, folder)
            lines = [
                f"# {RUNS[run][1]} rank(s): {script.name} {' '.join(arguments[2:])}",
                f"# commit {commit.strip()}",
                f"# machine {machine()}",
                f"# equal to the last digit on this machine type, else within {TOLERANCE} (relative or absolute)",
            ]
            for step, values in curve(folder / run):
                lines.append(" ".join([str(step), *(f"{k}={v!r}" for k, v in sorted(values.items()))]))
            Path(__file__).with_name(f"{run}.txt").write_text("\n".join(lines) + "\n")
            print(run, len(lines) - 4, "steps")


if __name__ == "__main__":
    main()
