"""`fiber refer`: the one region that an expression means."""

import argparse
from pathlib import Path
from typing import Any

from fiber.cli import on_images

DESCRIPTION = """The one region that an expression means:

    fiber refer --model runs/demo/stage2 --image photo.jpg --text "the left circle"
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    parser.add_argument("--text", required=True, help="the expression")
    parser.add_argument("--top", type=int, default=1, help="how many (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Every image of --image; -> exit status."""
    return on_images.over_images(arguments, one_image)


def one_image(predictor: Any, path: Path, arguments: argparse.Namespace) -> on_images.Result:
    """What is found in one image, as plain data."""
    found = predictor.refer(path, arguments.text, arguments.top)[0]
    return {"expression": arguments.text, "regions": on_images.plain(found)}
