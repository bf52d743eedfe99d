"""The report on a pre-trained model: the command on a tiny export."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fiber.data.convert.writer import write_dataset
from fiber.data.shapes.world import WORLDS, generate
from tiny_exports import coarse_export

TOOL = Path(__file__).resolve().parents[2] / "tools" / "shapes_report.py"


def test_a_report_has_every_figure_beside_its_baseline(tmp_path: Path) -> None:
    about = {"name": "shapes", "split": "test", "provenance": "procedural", "licence": "MIT"}
    write_dataset(generate(WORLDS["easy"], "test", 8, 0, "ordered"), tmp_path / "shards", **about)
    export, out = coarse_export(tmp_path / "export"), tmp_path / "out"
    command = [TOOL, export, "--shards", tmp_path / "shards", "--out", out, "--rerank-k", "4", "--queries", "2"]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, summary = done.stdout.splitlines()
    found = json.loads(summary)["retrieval"]
    assert found == json.loads((out / "stage1.json").read_text())["retrieval"]
    assert (found["images"], found["texts"], found["chance_t2i_r1"]) == (8, 16, 1 / 8)
    assert 8 <= found["swap_count"] < 16, "relations in every first caption, in few of the second"
    told = [line for line in lines if line.startswith("relation told from its opposite")]
    for line, key in zip(told, ("contrastive_swap_accuracy", "swap_accuracy"), strict=True):
        assert line.split()[-2:] == [f"{100 * found[key]:.1f}%", "50.0%"]
    assert (out / "retrieval.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("changed", "expected"),
    [([1, 3, 4], [2, 5, 3, 4]), ([], [2, 3, 4, 5]), ([4], [2, 3, 5, 4])],
)
def test_half_of_the_captions_drawn_are_those_that_re_ranking_changes_and_none_comes_twice(
    monkeypatch: pytest.MonkeyPatch, changed: list[int], expected: list[int]
) -> None:
    monkeypatch.syspath_prepend(TOOL.parent)
    drawn = importlib.import_module("shapes_figures").chosen_captions(["a", "b", "a", "b", "c", "d"], changed, 4)
    assert drawn == expected
