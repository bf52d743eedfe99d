"""`fiber match`: how well a text fits images."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from fiber.cli import on_images

if TYPE_CHECKING:
    from PIL import Image

    from fiber.predict.sources import ImageFile

DESCRIPTION = """How well a text fits images:

    fiber match --model runs/demo/stage1 --image photo.jpg --text "a red circle"
    ... --heat heat.png                                  and what each word looked at
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    parser.add_argument("--text", required=True, help="the text")
    on_images.heat(parser, "word")


def run(arguments: argparse.Namespace) -> int:
    """Every image of --image; -> exit status."""
    return on_images.over_images(arguments, results, sheet=sheet)


def results(predictor: Any, images: list[Any], arguments: argparse.Namespace) -> list[on_images.Result]:
    """What is found in each image of a batch, as plain data."""
    return [{"text": arguments.text} | dataclasses.asdict(found) for found in predictor.match(images, arguments.text)]


def sheet(predictor: Any, file: ImageFile, arguments: argparse.Namespace) -> Image.Image:
    """What each word looked at."""
    from fiber.predict.heat import heat_sheet

    return heat_sheet(predictor, file, arguments.text)
