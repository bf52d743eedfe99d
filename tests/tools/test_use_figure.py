"""The figure of the README's commands, on a tiny detector."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

import use_figure
from tiny_exports import fine_export

TOOL = Path(__file__).resolve().parents[2] / "tools" / "use_figure.py"


def test_the_texts_are_those_of_the_readme() -> None:
    readme = (TOOL.parents[1] / "README.md").read_text()
    assert (
        f'fiber ground --model runs/demo/stage2 --image runs/demo/images/5.png --text "{use_figure.SENTENCE}"'
        in readme
    )
    assert f'images/4.png --text "{", ".join(use_figure.CLASSES)}"' in readme


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
