"""Figures of found and true boxes, judged by the colours of their pixels; the command on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from fiber.data.convert.writer import write_dataset
from fiber.data.shapes.world import WORLDS, categories, generate
from fiber.evaluation.figures import Shown, draw_regions
from fiber.images.draw import COLOURS, HIT, MISS, tile
from tiny_exports import coarse_export, fine_export

REPO = Path(__file__).resolve().parents[2]
TOOL = REPO / "tools" / "visualize.py"


def share(figure: Image.Image, colour: str, region: tuple[int, int, int, int]) -> float:
    """Share (0..1) of a region's pixels that have exactly a colour."""
    pixels = np.asarray(figure.crop(region))
    return float((pixels == ImageColor.getrgb(colour)).all(-1).mean())


def test_boxes_and_phrases_share_a_colour() -> None:
    """A 160 x 160 image is drawn at twice its size: boxes lie at twice their corners. Found sides are solid, true
    ones dashed, and each phrase lies on a patch of its colour."""
    image = Image.new("RGB", (160, 160), "white")
    first = Shown((2, 9), found=[[10, 50, 70, 110]], labels=["0.90"], true=[[90, 20, 150, 80]])
    second = Shown((13, 21), found=[[90, 100, 150, 150]], labels=["0.40"])
    figure = draw_regions(image, "a red cat or two dogs", [first, second])
    assert figure.width == 320
    solid = share(figure, COLOURS[0], (20, 140, 22, 200))
    dashed = share(figure, COLOURS[0], (179, 44, 181, 156))
    assert solid == 1.0
    assert 0.3 < dashed < 0.8
    assert share(figure, COLOURS[1], (180, 240, 182, 290)) == 1.0
    below = (0, 320, 320, figure.height)
    assert all(share(figure, COLOURS[number], below) > 0.01 for number in (0, 1))
    assert share(figure, COLOURS[2], (0, 0, figure.width, figure.height)) == 0.0


def test_labels_say_hit_or_miss() -> None:
    """By IoU 0.5 with a true box of the same phrase; the colours are those of nothing else."""
    image = Image.new("RGB", (160, 160), "white")
    true = [[10, 60, 70, 120], [90, 60, 150, 120]]
    for box, colour, other in (
        ([90, 60, 150, 90], HIT, MISS),  # half of the second: 0.5
        ([90, 60, 150, 89], MISS, HIT),
    ):
        figure = draw_regions(image, "a cat", [Shown((2, 5), found=[box], labels=["0.90"], true=true)])
        assert share(figure, colour, (0, 0, 320, 320)) > 0.001
        assert share(figure, other, (0, 0, 320, 320)) == 0.0
    no_truth = draw_regions(image, "a cat", [Shown((2, 5), found=[[10, 60, 70, 120]], labels=["0.90"])])
    assert share(no_truth, MISS, (0, 0, 320, 320)) > 0.001


def test_phrases_that_were_not_found_still_show_the_truth() -> None:
    figure = draw_regions(Image.new("RGB", (160, 160)), "a cat", [Shown((2, 5), true=[[10, 10, 50, 50]])])
    assert share(figure, COLOURS[0], (19, 24, 21, 96)) > 0.3


def test_objects_that_were_not_found_are_marked_as_missed() -> None:
    """Of a phrase one true box is enough; of a class each is to be found."""
    image, true = Image.new("RGB", (160, 160), "white"), [[10, 60, 70, 120], [90, 60, 150, 120]]
    for every, missed in ((False, False), (True, True)):
        one = Shown((2, 5), found=[true[0]], labels=["0.90"], true=true, every=every)
        figure = draw_regions(image, "a cat", [one])
        assert (share(figure, MISS, (180, 80, 320, 120)) > 0.05) == missed
        assert share(figure, MISS, (0, 0, 170, 320)) == 0.0
    none = draw_regions(image, "a cat", [Shown((2, 5), true=true[:1])])
    assert share(none, MISS, (0, 0, 320, 320)) > 0.001


def test_tiles_keep_every_pixel() -> None:
    images = [Image.new("RGB", (20 + 10 * i, 30), COLOURS[i]) for i in range(5)]
    sheet = np.asarray(tile(images, columns=2))
    for i in range(5):
        assert (sheet == ImageColor.getrgb(COLOURS[i])).all(-1).sum() == (20 + 10 * i) * 30


def test_the_command_draws_one_sheet_and_refuses_other_models(tmp_path: Path) -> None:
    world = WORLDS["easy"]
    about = {"name": "scenes", "split": "test", "provenance": "drawn", "licence": "none"}
    write_dataset(generate(world, "test", 5, seed=0), tmp_path / "scenes", categories=categories(world), **about)
    fine, coarse = fine_export(tmp_path / "a" / "fine"), coarse_export(tmp_path / "b" / "coarse")

    def run(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)

    out = tmp_path / "out" / "sheet.png"
    done = run(fine, "--shards", tmp_path / "scenes", "--out", out, "--count", 3)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"out": str(out), "images": 3}
    assert Image.open(out).width == 3 * 328
    refused = run(coarse, "--shards", tmp_path / "scenes", "--out", out)
    assert refused.returncode == 1
    assert "is a model at image level" in refused.stderr
