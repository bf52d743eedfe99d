"""launch/photographs.sh on a few real images: all is converted, trained, evaluated, drawn, and in the table."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

SETS = ("bccd", "coco128", "flickr8k_1000", "roberta_tokenizer")
STEPS = ["train.steps=2", "train.global_batch=2", "train.micro_batch=2", "train.log_every=1", "train.save_every=2"]
COMMON = [*STEPS, "eval.every=2", "eval.batch=4", "data.workers=0"]
SMALL_REGIONS = [*COMMON, "regions.short_sides=[64]", "regions.test_side=64", "regions.figures=0"]
SMALL_REGIONS += ["train.accumulation=1"]
SMALL_IMAGES = [*COMMON, "image_size=64", "model.image.window=2"]


@pytest.fixture(scope="module")
def runs(shared: Path, coarse: Path, fine: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory,
         launch: Callable[..., str]) -> Path:  # fmt: skip
    """The folder that the script fills, in two calls: words are those of one stage."""
    real, folder = shared / "real", tmp_path_factory.mktemp("photographs")
    if missing := [name for name in SETS if not (real / name).is_dir()]:
        pytest.skip(f"{real} lacks {', '.join(missing)}")
    shapes = folder / "shapes"
    shapes.mkdir()
    for name, place in (("stage1", coarse), ("stage2", fine), ("tokenizer", tokenizer)):
        (shapes / name).symlink_to(place)
    variables = {"DATA": real, "SHAPES": shapes, "OUT": folder / "out", "SEEDS": "0", "LIMIT": "6"}
    launch("photographs.sh", *SMALL_REGIONS, PARTS="cells objects", STARTS="shapes", **variables)
    launch("photographs.sh", *SMALL_IMAGES, PARTS="pairs captions", STARTS="nothing", **variables)
    return folder / "out"


def test_every_score_stands_beside_its_baseline(runs: Path) -> None:
    rows = [line.split(" | ") for line in (runs / "table.md").read_text().splitlines()[2:]]
    names = [row[0].removeprefix("| ") for row in rows]
    for start in ("zero-shot", "from drawn shapes"):
        assert sum(name.startswith("cells") and name.endswith(start) for name in names) == 1, names
    assert sum(name.startswith("200 photographs") and "from nothing" in name for name in names) == 1, names
    assert sum(name.startswith("200 pairs") for name in names) == 2
    assert sum(name.startswith("objects") for name in names) == 2
    assert any(name.startswith("their captions") for name in names)
    assert all(len(row) == 4 and row[2] and row[3].strip(" |") for row in rows)


def test_pictures_are_drawn(runs: Path) -> None:
    assert all((runs / name).stat().st_size > 10_000 for name in ("bccd.png", "curves.png"))


def test_the_pairs_are_one_caption_of_each_image(runs: Path) -> None:
    lines = (runs / "raw/pairs.csv").read_text().splitlines()
    assert lines[0] == "image,caption"
    assert len({line.partition(",")[0] for line in lines[1:]}) == len(lines) - 1 == 200


def test_every_script_can_be_started() -> None:
    """As the docs write it, without `bash` before it; common.sh is read by the others."""
    folder = Path(__file__).resolve().parents[2] / "launch"
    scripts = [path for path in folder.glob("*.sh") if path.name != "common.sh"]
    assert [path.name for path in scripts if not os.access(path, os.X_OK)] == []
    assert len(scripts) > 10
