"""`fiber match`: how well a text fits images."""

import argparse
import dataclasses
from pathlib import Path
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
    return on_images.over_images(arguments, one_image)


def one_image(predictor: Any, path: Path, arguments: argparse.Namespace) -> on_images.Result:
    """What is found in one image, as plain data."""
    return {"text": arguments.text} | dataclasses.asdict(predictor.match(path, arguments.text)[0])
