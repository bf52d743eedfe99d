"""Means over sets and seeds by hand, the suites against the release's own lists, and the table as a user makes it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fiber.data.convert.odinw import _slug
from odinw import ODINW_13, ODINW_35, Cell, mean_cell, read_runs, set_cell, settings_of, table

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two sets: zero-shot and full fine-tuning of both, three seeds of one shot, of which one has not ended."""

    def write(path: str, figures: dict) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures))

    for name, zero, full, few in (("a", 0.2, 0.6, (0.3, 0.4, 0.5)), ("b", 0.4, 0.8, (0.5, 0.4, 0.9))):
        write(f"{name}/zero_shot/figures.json", {"step": 0, "ap": zero})
        write(f"{name}/full_full/summary.json", {"steps": 9, "eval": {"ap": full, "ap50": 1.0}})
        write(f"{name}/shards/1_3/dataset.json", {})
        for seed, ap in zip((3, 30, 300), few, strict=True):
            write(f"{name}/1_shot_frozen_towers_{seed}/summary.json", {"eval": {"ap": ap}})
        write(f"{name}/full_full/test.json", {"step": 9, "ap": full - 0.1})
    (tmp_path / "b/1_shot_frozen_towers_300/summary.json").unlink()
    return tmp_path


def test_suites_are_the_releases_lists(shared: Path) -> None:
    for names, folder in ((ODINW_13, "odinw_13"), (ODINW_35, "odinw_35")):
        files = {_slug(path.stem) for path in (shared / "real/odinw" / folder).glob("*.yaml")}
        assert len(names) == len(set(names)) == int(folder[-2:])
        assert files - set(names) == ({"plantdoc_100x100"} if len(names) == 35 else set())
        assert set(names) <= files


def test_means_and_spreads_by_hand(runs: Path) -> None:
    scores = read_runs(runs)
    assert settings_of(scores) == ["zero-shot", "1-shot frozen_towers", "full full", "full full, test"]
    assert mean_cell(scores, ["a", "b"], "full full, test") == Cell(pytest.approx(0.6), None, 1, 2)
    assert mean_cell(scores, ["a", "b"], "zero-shot") == Cell(pytest.approx(0.3), None, 1, 2)
    assert set_cell(scores, "a", "1-shot frozen_towers") == Cell(pytest.approx(0.4), pytest.approx(0.1), 3)
    with pytest.raises(ValueError, match=r"1-shot frozen_towers: 1 of 2 sets have no figure for every seed \(b\)"):
        mean_cell(scores, ["a", "b"], "1-shot frozen_towers")
    assert mean_cell(scores, ["a", "b"], "1-shot frozen_towers", allow_missing=True).sets == 1
    (runs / "b/1_shot_frozen_towers_300/summary.json").write_text('{"eval": {"ap": 0.9}}')
    # Over sets by seed: .4, .4, .7; their mean .5, their deviation sqrt((.01 + .01 + .04) / 2).
    found = mean_cell(read_runs(runs), ["a", "b"], "1-shot frozen_towers")
    assert found == Cell(pytest.approx(0.5), pytest.approx(0.03**0.5), 3, 2)


def test_a_setting_that_no_set_has_is_never_a_mean(runs: Path) -> None:
    with pytest.raises(ValueError, match="2 of 2 sets have no figure"):
        mean_cell(read_runs(runs), ["a", "b"], "3-shot full", allow_missing=True)


def test_the_table_names_every_fault_at_once(runs: Path) -> None:
    with pytest.raises(ValueError, match="zero-shot") as error:
        table(read_runs(runs), ["a", "b", "c"])
    assert [line.split(" sets")[0] for line in str(error.value).splitlines()] == [
        "zero-shot: 1 of 3",
        "1-shot frozen_towers: 2 of 3",
        "full full: 1 of 3",
        "full full, test: 1 of 3",
    ]


def test_the_command(runs: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(REPO / "tools/odinw_table.py"), str(runs), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = run()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: 1-shot frozen_towers: 1 of 2 sets")
    partly = run("--allow-missing", "--json", str(runs / "out.json"))
    assert partly.returncode == 0, partly.stderr
    *lines, summary = partly.stdout.splitlines()
    assert lines[0] == "| set | zero-shot | 1-shot frozen_towers | full full | full full, test |"
    assert lines[2:] == [
        "| a | 20.0 | 40.0 ± 10.0 | 60.0 | 50.0 |",
        "| b | 40.0 | 45.0 ± 7.1 | 80.0 | 70.0 |",
        "| mean | 30.0 | 40.0 ± 10.0 (1 of 2 sets) | 70.0 | 60.0 |",
        "",
        "few-shot subsets drawn by tools/few_shot.py, not the published ones: a/1_3, b/1_3",
    ]
    assert json.loads(summary)["zero-shot"]["mean"]["mean"] == pytest.approx(0.3)
    assert json.loads((runs / "out.json").read_text()) == json.loads(summary)
    suite = run("--suite", "13", "--allow-missing")
    assert suite.returncode == 1
    assert "13 of 13 sets" in suite.stderr


def test_a_run_without_ap_is_named(runs: Path) -> None:
    (runs / "a/zero_shot/figures.json").write_text('{"step": 0, "grounding_r1": 0.5}')
    with pytest.raises(ValueError, match=r"a/zero_shot/figures.json: no ap"):
        read_runs(runs)
    with pytest.raises(ValueError, match="no finished run"):
        read_runs(runs / "a")
