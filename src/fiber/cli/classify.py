"""`fiber classify`: the classes that fit images best."""

import argparse
from typing import Any

from fiber.cli import on_images
from fiber.cli.numbers import whole_number

DESCRIPTION = """The classes that fit images best, without training on them:

    fiber classify --model runs/demo/stage1 --image photos/ --text "circle, square, triangle"

Without --text, the classes of the model's own classification head.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    parser.add_argument("--text", help="class names, separated by commas (default: those of the trained head)")
    parser.add_argument("--top", type=whole_number(1), default=5, help="how many (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Every image of --image; -> exit status."""
    on_images.class_list(arguments)  # before the model is loaded: it may name none
    return on_images.over_images(arguments, results)


def results(predictor: Any, images: list[Any], arguments: argparse.Namespace) -> list[on_images.Result]:
    """What is found in each image of a batch, as plain data."""
    names = on_images.class_list(arguments)
    return [{"classes": on_images.plain(found)} for found in predictor.classify(images, names, arguments.top)]
