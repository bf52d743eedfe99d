"""`fiber match`: how well a text fits images."""

import argparse
import dataclasses
from typing import Any

from fiber.cli import on_images

DESCRIPTION = """How well a text fits images:

    fiber match --model runs/demo/stage1 --image photo.jpg --text "a red circle"
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    parser.add_argument("--text", required=True, help="the text")


def run(arguments: argparse.Namespace) -> int:
    """Every image of --image; -> exit status."""
    return on_images.over_images(arguments, results)


def results(predictor: Any, images: list[Any], arguments: argparse.Namespace) -> list[on_images.Result]:
    """What is found in each image of a batch, as plain data."""
    return [{"text": arguments.text} | dataclasses.asdict(found) for found in predictor.match(images, arguments.text)]
