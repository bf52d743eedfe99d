"""A type checker knows what `fiber.load` returns, and which methods that has; so does the program."""

import subprocess
import sys
from pathlib import Path

import pytest

import fiber
from fiber.errors import WeightsError
from fiber.predict.image import CoarsePredictor
from fiber.predict.region import FinePredictor
from tiny_exports import coarse_export, fine_export

REPO = Path(__file__).resolve().parents[2]
SCRIPT = """\
import fiber
from fiber.predict.region import FinePredictor

image, region, either = fiber.load("a", level="image"), fiber.load("b", level="region"), fiber.load("c")
print(image.match("x.jpg", "a dog")[0].probability, region.detect("x.jpg", ["a dog"])[0][0].box)
if isinstance(either, FinePredictor):
    print(either.refer("x.jpg", "the left dog")[0][0].score)
reveal_type(image)
reveal_type(region)
image.detect("x.jpg", ["a dog"])
either.detect("x.jpg", ["a dog"])
fiber.load("a", level="pixel")
"""
SETTINGS = """\
[mypy]
strict = True
follow_imports = silent
[mypy-torch.*,torchvision.*,transformers.*,tokenizers.*,numpy.*,PIL.*,pydantic.*,safetensors.*,huggingface_hub.*]
follow_imports = skip
ignore_missing_imports = True
"""


def test_a_strict_type_checker_on_a_script_of_a_user(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(SCRIPT)
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "user.py"],
        cwd=tmp_path, env={"MYPYPATH": str(REPO / "src"), "PATH": ""}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    said = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("user.py")]
    assert said[:2] == [
        'note: Revealed type is "fiber.predict.image.CoarsePredictor"',
        'note: Revealed type is "fiber.predict.region.FinePredictor"',
    ], done.stdout + done.stderr
    lines = [line.split(":")[1] for line in done.stdout.splitlines() if ": error: " in line]
    assert lines == ["10", "11", "12"], done.stdout  # what the program refuses as well, and nothing else


def test_a_model_of_the_other_level_is_one_line(tmp_path: Path) -> None:
    coarse, fine = coarse_export(tmp_path / "coarse"), fine_export(tmp_path / "fine")
    assert isinstance(fiber.load(coarse, "cpu", level="image"), CoarsePredictor)
    assert isinstance(fiber.load(fine, "cpu", level="region"), FinePredictor)
    with pytest.raises(WeightsError, match=r"coarse: a model at image level, asked for was one at region level$"):
        fiber.load(coarse, "cpu", level="region")
    with pytest.raises(ValueError, match="level 'fine' is not one of image, region"):
        fiber.load(coarse, "cpu", level="fine")  # type: ignore[call-overload]
