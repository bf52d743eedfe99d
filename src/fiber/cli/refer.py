"""`fiber refer`: the one region that an expression means."""

import argparse
from typing import Any

from fiber.cli import on_images
from fiber.cli.numbers import whole_number

DESCRIPTION = """The one region that an expression means:

    fiber refer --model runs/demo/stage2 --image photo.jpg --text "the left circle"
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    parser.add_argument("--text", required=True, help="the expression")
    parser.add_argument("--top", type=whole_number(1), default=1, help="how many (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Every image of --image; -> exit status."""
    return on_images.over_images(arguments, results)


def results(predictor: Any, images: list[Any], arguments: argparse.Namespace) -> list[on_images.Result]:
    """What is found in each image of a batch, as plain data."""
    found = predictor.refer(images, arguments.text, arguments.top)
    return [{"expression": arguments.text, "regions": on_images.plain(regions)} for regions in found]
