"""The README's examples give right answers on the demo, and the check sees a wrong one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import demo_examples as tool

REPO = Path(__file__).resolve().parents[2]
DEMO = Path(os.environ.get("FIBER_DEMO", REPO / "runs" / "demo"))
SCENE = {
    "captions": [
        {
            "text": "a small red star left of a large blue square",
            "phrases": [{"boxes": [1], "span": [[0, 16]]}, {"boxes": [0], "span": [[25, 44]]}],
        }
    ],
    "boxes": [{"box": [40, 10, 60, 30]}, {"box": [5, 12, 15, 22]}],
    "expressions": [{"box": 1, "text": "the star"}],
}
STAR, SQUARE = [5, 12, 15, 22], [40, 10, 60, 30]


@pytest.mark.skipif(not (DEMO / "summary.json").is_file(), reason="no demo here: make demo, or set FIBER_DEMO to one")
def test_every_answer_of_the_readme_is_right() -> None:
    done = subprocess.run(
        [sys.executable, REPO / "tools" / "demo_examples.py", DEMO], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "README examples checked: 5 of 5 right\n"


def test_the_examples_are_those_of_the_readme() -> None:
    verbs = [words[0] for words in tool.examples((REPO / "README.md").read_text())]
    assert verbs == ["match", "retrieve", "ground", "refer", "detect"]


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("a small red star left of a large blue square", True),
        ("there is a large blue square right of a small red star", True),
        ("a large blue square is left of a small red star", False),
        ("a small red star above a large blue square", True),  # 17 and 20: y grows downwards
        ("a small red star below a large blue square", False),
        ("a large red star left of a large blue square", False),
    ],
)
def test_the_truth_of_a_scene(text: str, true: bool) -> None:
    assert tool.holds(SCENE, text) == true
    assert tool.right("match", {"probability": 0.9, "text": text}, SCENE) == true
    assert tool.right("match", {"probability": 0.2, "text": text}, SCENE) != true
    assert tool.right("retrieve", {"text": text}, SCENE) == true


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ([("red star", STAR), ("blue square", SQUARE)], True),
        ([("blue square", SQUARE), ("red star", [6, 12, 16, 22])], True),
        ([("red star", STAR)], False),  # one is missed
        ([("red star", STAR), ("blue square", STAR)], False),  # not on its object
        ([("red star", STAR), ("blue square", SQUARE), ("blue square", SQUARE)], False),  # twice
        ([("blue star", STAR), ("blue square", SQUARE)], False),
        ([], False),
    ],
)
def test_detections_are_right_when_nothing_is_missed_or_added(regions: list, expected: bool) -> None:
    result = {"regions": [{"label": label, "box": box} for label, box in regions]}
    assert tool.right("detect", result, SCENE) == expected


def test_phrases_and_expressions() -> None:
    both = [{"label": "small red star", "box": STAR}, {"label": "large blue square", "box": SQUARE}]
    assert tool.right("ground", {"regions": both}, SCENE)
    assert not tool.right("ground", {"regions": [both[0], both[1] | {"box": STAR}]}, SCENE)
    assert tool.right("refer", {"expression": "the star", "regions": both}, SCENE)
    assert not tool.right("refer", {"expression": "the star", "regions": both[::-1]}, SCENE)
