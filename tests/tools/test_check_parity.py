"""The parity tool as users run it: it passes on the recorded fixtures, and it can fail."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TOOL = Path(__file__).parents[2] / "tools" / "check_parity.py"


def run(*prefixes: Path | str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, TOOL, *map(str, prefixes)], capture_output=True, text=True, check=False)


def rows(output: str) -> dict[str, bool]:
    """Output name -> ok, of every table in the output (columns lie two or more blanks apart)."""
    lines = [re.split(r" {2,}", line) for line in output.splitlines()]
    return {columns[0]: columns[-1] == "yes" for columns in lines if columns[-1] in ("yes", "NO")}


def test_both_stages_pass(shared: Path) -> None:
    done = run(shared / "parity" / "fine_a", shared / "parity" / "coarse_a")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " NO" not in done.stdout
    counts = [line.split(": ")[1] for line in done.stdout.splitlines() if line.endswith(" ok") and " of " in line]
    assert len(counts) == 2
    assert all(int(c.split()[0]) == int(c.split()[2]) > 100 for c in counts)


def test_deviations_fail_where_they_are(shared: Path, tmp_path: Path) -> None:
    """A changed weight, a changed recording, and a recording that nothing compares."""
    for name in ("fine_a", "coarse_a"):
        for end in ("json", "io.safetensors", "weights.safetensors"):
            shutil.copy(shared / "parity" / f"{name}.{end}", tmp_path)
    weights = load_file(tmp_path / "fine_a.weights.safetensors")
    weights["rpn.head.bbox_pred.bias"] += 0.01
    save_file(weights, tmp_path / "fine_a.weights.safetensors")
    recorded = load_file(tmp_path / "coarse_a.io.safetensors")
    recorded["fused.text_layer7"][0, 0, 0] += 1e-3
    recorded["new.output"] = torch.zeros(1)
    save_file(recorded, tmp_path / "coarse_a.io.safetensors")
    facts = json.loads((tmp_path / "coarse_a.json").read_text())
    facts["grad_norms"]["itm_score.fc.weight"] *= 1.001
    (tmp_path / "coarse_a.json").write_text(json.dumps(facts))
    done = run(tmp_path / "fine_a", tmp_path / "coarse_a", tmp_path / "absent")
    assert done.returncode == 1
    assert "absent.json is missing" in done.stderr
    failed = {name for name, ok in rows(done.stdout).items() if not ok}
    assert {"head.bbox_reg.p3", "loss boxes3_1.loss_reg", "fused.text_layer7"} <= failed
    assert {"grad norm itm_score.fc.weight", "recorded outputs left uncompared"} <= failed
    passed = rows(done.stdout)
    assert passed["head.centerness.p3"]
    assert passed["fused.text_layer8"]
