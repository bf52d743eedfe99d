"""`fiber answer`: answers to a question about images."""

import argparse
from typing import Any

from fiber.cli import on_images
from fiber.cli.numbers import whole_number

DESCRIPTION = """Answer a question about images:

    fiber answer --model runs/vqa --image photo.jpg --text "how many dogs are there?"
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    parser.add_argument("--text", required=True, help="the question")
    parser.add_argument("--top", type=whole_number(1), default=5, help="how many (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Every image of --image; -> exit status."""
    return on_images.over_images(arguments, results)


def results(predictor: Any, images: list[Any], arguments: argparse.Namespace) -> list[on_images.Result]:
    """What is found in each image of a batch, as plain data."""
    answers = predictor.answer(images, arguments.text, arguments.top)
    return [{"question": arguments.text, "answers": on_images.plain(found)} for found in answers]
