"""The demo with a few steps, its summary, and every command of the README and the tour on what it leaves behind."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from launcher import REPO, environment, free_port

from fiber.cli.main import main as fiber
from fiber.processor import bfloat16_is_faster
from tiny_exports import images

NOT_RUN_HERE = ("make demo", "make test")  # `launch/demo.sh` is what the first runs; the second would run this


def shell(command: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=REPO,
        env=environment(folder) | {"MASTER_PORT": str(free_port())},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small demo."""
    folder = tmp_path_factory.mktemp("demo")
    run = shell(f"SEED=3 SMALL=1 OUT={folder}/out launch/demo.sh", folder)
    assert run.returncode == 0, run.stdout + run.stderr
    for word in ("Warning", "Traceback", "Error"):
        assert word not in run.stderr, run.stderr
    assert "baseline" in run.stdout
    return folder / "out"


def numbers(tree: dict) -> list[float]:
    values = [value for value in tree.values() if value != "pretrained"]
    return [x for value in values for x in (numbers(value) if isinstance(value, dict) else [value])]


def test_summary_has_every_figure_of_the_contract(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text())
    stage1, stage2 = summary["stage1"], summary["stage2"]
    assert set(stage1) == {"steps", "seconds", "pairs_per_second", "towers", "retrieval", "mlm_visual", "itm"}
    assert stage1["towers"] == "pretrained"
    again = {f"{how}_{way}_r1" for how in ("reranked", "joint") for way in ("i2t", "t2i")}
    assert set(stage1["retrieval"]) == {"i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5", "candidates"} | again
    assert set(stage1["mlm_visual"]) == {"true_image", "wrong_image"}
    assert set(stage1["itm"]) == {"loss", "prior"}
    expected = {"steps", "seconds", "pairs_per_second", "grounding_r1", "grounding_r5", "class_agnostic_r1", "ap50"}
    assert set(stage2) == expected
    assert (stage1["steps"], stage2["steps"], stage1["retrieval"]["candidates"]) == (8, 6, 32)
    assert all(isinstance(value, int | float) and value >= 0 for value in numbers(summary))
    assert summary["total_seconds"] > stage1["seconds"] + stage2["seconds"]


def test_trains_as_the_processor_can_and_from_the_seed(demo: Path) -> None:
    one, two = (yaml.safe_load((demo / stage / "config.yaml").read_text()) for stage in ("stage1", "stage2"))
    assert one["train"]["precision"] == ("bf16" if bfloat16_is_faster() else "fp32")
    assert two["train"]["precision"] == "fp32"
    assert (one["seed"], two["seed"]) == (3, 3)


def test_images_are_there(demo: Path) -> None:
    for name in ("retrieval.png", "stage1_curves.png", "grounding.png"):
        assert (demo / "figures" / name).stat().st_size > 10_000, name


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (REPO / page).read_text(), re.DOTALL)


def test_every_command_of_the_readme_and_the_tour_runs(demo: Path, tmp_path: Path) -> None:
    pages = {page: "".join(blocks(page, "bash")).splitlines() for page in ("README.md", "docs/tour.md")}
    assert len(pages["README.md"]) >= 10
    assert len(pages["docs/tour.md"]) >= 4
    commands = dict.fromkeys([*pages["README.md"], *pages["docs/tour.md"]])  # those on both pages run once
    for command in commands:
        if command in NOT_RUN_HERE:
            continue
        here = command.replace("runs/demo", str(demo)).replace("runs/try", str(tmp_path / "try"))
        if "launch/" in here:  # the configurations name the demo's folders too
            here += f" tokenizer={demo}/tokenizer data.train.0.path={demo}/shards/train"
            here += f" eval.data.0.path={demo}/shards/test"
        if "stage2" in here and "launch/" in here:
            here += f" data.train.1.path={demo}/shards/train eval.data.1.path={demo}/shards/test"
        run = shell(here, tmp_path)
        assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"
        for out in re.findall(r"--out (\S+\.png)", here):
            assert os.path.getsize(out) > 500, shlex.quote(out)


def test_the_python_of_the_tour_runs(demo: Path, capsys: pytest.CaptureFixture) -> None:
    (code,) = blocks("docs/tour.md", "python")
    exec(code.replace("runs/demo", str(demo)), {})
    assert "the triangle" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "stage", "text"),
    [
        ("classify", "stage1", "red circle, blue square"),
        ("match", "stage1", "a small red circle"),
        ("retrieve", "stage1", "a large blue square"),
        ("ground", "stage2", "a small red circle left of a large blue square"),
        ("refer", "stage2", "the circle left of the square"),
        ("detect", "stage2", "red circle, blue square"),
    ],
)
def test_every_command_uses_what_the_demo_exported_on_odd_images(
    demo: Path, tmp_path: Path, task: str, stage: str, text: str
) -> None:
    odd = images(tmp_path / "odd")
    out = tmp_path / "found.json"
    where = ["--model", str(demo / stage), "--image", str(tmp_path / "odd"), "--out", str(out)]
    assert fiber([task, *where, "--text", text]) == 0
    found = json.loads(out.read_text())
    assert found
    assert task == "retrieve" or len(found) == len(odd)


def test_a_task_without_its_head_says_which_tasks_there_are(demo: Path, capsys: pytest.CaptureFixture) -> None:
    images = ["--image", str(demo / "images"), "--text", "what colour is the circle?"]
    assert fiber(["answer", "--model", str(demo / "stage1"), *images]) == 1
    assert "it can: match, retrieve, embed, classify" in capsys.readouterr().err
