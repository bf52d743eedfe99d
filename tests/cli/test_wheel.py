"""The wheel by itself, in an empty folder: from nothing to boxes on an image, without the clone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PACKED = ("src", "configs", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed by itself."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # not in the checkout: a build folder of before would be packed again
    source.mkdir()
    for name in PACKED:
        copy = shutil.copytree if (REPO / name).is_dir() else shutil.copyfile
        copy(REPO / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run(build, check=True, timeout=300)
    wheel = next(folder.glob("fiber_vl-*.whl"))
    install = [*pip, "install", "--no-deps", "--no-compile", "--target", folder / "site", wheel]
    subprocess.run(install, check=True, timeout=300)
    return folder / "site"


def fiber(site: Path, folder: Path, *words: str) -> str:
    """Run the installed command in a folder; -> stdout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(site), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, site / "bin" / "fiber", *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"fiber {' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_what_the_wheel_holds(site: Path) -> None:
    packed = {str(file.relative_to(site / "fiber" / "configs")) for file in (site / "fiber" / "configs").rglob("*.*")}
    assert packed == {str(file.relative_to(REPO / "configs")) for file in (REPO / "configs").rglob("*.*")}
    for file in ("py.typed", "data/shapes/towers/image.safetensors", "data/shapes/towers/text/tokenizer.json"):
        assert (site / "fiber" / file).is_file()
    facts = next(site.glob("*.dist-info/METADATA")).read_text()
    assert "\n## Quick start" in facts or "make demo" in facts  # the README
    for line in ("Requires-Python: >=3.11", "Provides-Extra: train", "Classifier: Typing :: Typed"):
        assert f"\n{line}\n" in facts
    base = [line for line in facts.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    for name in ("deepspeed", "wandb", "matplotlib", "webdataset", "pycocotools", "timm"):
        assert not any(name in line for line in base)


def test_from_nothing_to_boxes(site: Path, tmp_path: Path) -> None:
    for split, images in (("train", "24"), ("val", "4")):
        words = ("--world", "easy", "--captions", "full", "--split", split, "--limit", images)
        fiber(site, tmp_path, "shards", "shapes", *words, "--out", f"S/{split}")
    fiber(site, tmp_path, "tokenizer", "S/train", "--out", "tokenizer")
    small = ("train.steps=10", "train.global_batch=4", "train.micro_batch=4", "train.log_every=5", "data.workers=0")
    start = ("data=S", "tokenizer=tokenizer", "init_from=null", "output=run", "eval.batch=4")
    fiber(site, tmp_path, "train", "stage2/shapes_tiny", *start, *small)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 10
    figures = json.loads(fiber(site, tmp_path, "eval", "run", "data=S").splitlines()[-1])
    assert figures["step"] == 10
    assert figures["ap"] == pytest.approx(summary["eval"]["ap"])
    shutil.rmtree(tmp_path / "run" / "report")
    fiber(site, tmp_path, "report", "run")
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    # Any image will do: the model has hardly learned.
    fiber(site, tmp_path, "config", "copy", "stage2/odinw", "mine.yaml")
    image = REPO / "docs" / "figures" / "use.png"
    found = json.loads(
        fiber(
            site,
            tmp_path,
            "detect",
            "--model",
            "run",
            "--image",
            str(image),
            "--text",
            "red circle",
            "--threshold",
            "0",
        )
    )
    assert {"image", "regions"} <= found.keys()
