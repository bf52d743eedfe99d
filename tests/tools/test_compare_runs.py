"""Groups of hand-made runs: the table holds their means and ranges, the last line the end."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

TOOL = Path(__file__).resolve().parents[2] / "tools" / "compare_runs.py"


def run(folder: Path, values: dict[int, float]) -> Path:
    folder.mkdir()
    rows = [{"step": step - 1, "eval/ap50": value, "eval/chance": 0.25} for step, value in values.items()]
    rows.insert(1, {"step": 5, "loss/total": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_table_plot_and_summary(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", {10: 0.2, 20: 0.5}), run(tmp_path / "b", {10: 0.4, 20: 0.6})
    third = run(tmp_path / "c", {10: 0.1})
    command = [sys.executable, TOOL, "--out", tmp_path / "plot.png", "--metric"]
    done = subprocess.run(
        [*command, "ap50:chance", f"two={first},{second}", f"one={third}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:-1] == [
        "| step | ap50, two | ap50, one |",
        "|---|---|---|",
        "| 10 | 30.0 (20.0-40.0) | 10.0 |",
        "| 20 | 55.0 (50.0-60.0) |  |",
    ]
    assert json.loads(done.stdout.splitlines()[-1]) == {"ap50": {"two": 0.55, "one": 0.1}}
    assert Image.open(tmp_path / "plot.png").width > 400
    missing = subprocess.run([*command, "recall", f"two={first}"], capture_output=True, text=True)
    assert missing.returncode == 1
    assert "no step at which all have eval/recall" in missing.stderr
