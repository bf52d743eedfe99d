"""The check of a card, its sections on the CPU with tiny sizes."""

import json
from pathlib import Path

import pytest

import gpu_check
import gpu_check_sections

IN_SECONDS = ("machine", "equal", "attention", "stage1", "stage2", "evaluate", "parity", "compile")
"""The others start runs and loaders, which tests of their own start too."""


def test_every_section_runs_dry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    out = tmp_path / "check.json"
    status = gpu_check.main(["--dry", "--json", str(out), "--only", ",".join(IN_SECONDS)])
    found = json.loads(out.read_text())
    assert status == 0, {name: rows["error"] for name, rows in found.items() if "error" in rows}
    assert tuple(found) == IN_SECONDS
    for stage in (1, 2):
        rows = found["equal"][f"stage{stage} fp32"]
        assert rows["losses"] == pytest.approx(rows["cpu"], rel=1e-5)
    assert set(gpu_check.LIMITS) - set(IN_SECONDS) == {"train", "loader"}
    assert sum(limit for _, limit in gpu_check.LIMITS.values()) <= 13 * 60  # the last ones are left out


def test_a_failing_section_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(dry: bool) -> dict:
        raise RuntimeError("out of luck")

    monkeypatch.setitem(gpu_check.LIMITS, "equal", (failing, 1))
    monkeypatch.setitem(gpu_check.LIMITS, "stage1", (lambda dry: {"dry": dry}, 1))
    status = gpu_check.main(["--dry", "--json", str(tmp_path / "out.json"), "--only", "equal,stage1"])
    found = json.loads((tmp_path / "out.json").read_text())
    assert status == 1
    assert found["equal"]["error"] == "RuntimeError: out of luck"
    assert found["stage1"]["dry"]


def test_no_section_begins_without_time(tmp_path: Path) -> None:
    assert gpu_check.main(["--minutes", "0.1", "--json", str(tmp_path / "out.json"), "--only", "stage1"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["stage1"]["skipped"]
    assert gpu_check_sections.PARITY.name == "parity"
