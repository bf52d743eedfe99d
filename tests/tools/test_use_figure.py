"""The figure of the README's commands, on a tiny detector."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tiny_exports import fine_export

TOOL = Path(__file__).resolve().parents[2] / "tools" / "use_figure.py"


def test_three_commands_stand_side_by_side(tmp_path: Path) -> None:
    fine_export(tmp_path / "demo" / "stage2")
    (tmp_path / "demo" / "images").mkdir()
    for name in ("4.png", "5.png"):
        Image.new("RGB", (64, 64), "white").save(tmp_path / "demo" / "images" / name)
    out = tmp_path / "use.png"
    argv = [sys.executable, TOOL, tmp_path / "demo", "--out", out]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"out": str(out), "images": 3}
    with Image.open(out) as sheet:
        assert sheet.width == 3 * (320 + 8)
        assert sheet.height > 320  # the commands below
