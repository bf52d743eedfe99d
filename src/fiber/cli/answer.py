"""`fiber answer`: answers to a question about images."""

import argparse
from pathlib import Path
from typing import Any

from fiber.cli import on_images

DESCRIPTION = """Answer a question about images:

    fiber answer --model runs/vqa --image photo.jpg --text "how many dogs are there?"
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    parser.add_argument("--text", required=True, help="the question")
    parser.add_argument("--top", type=int, default=5, help="how many (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Every image of --image; -> exit status."""
    return on_images.over_images(arguments, one_image)


def one_image(predictor: Any, path: Path, arguments: argparse.Namespace) -> on_images.Result:
    """What is found in one image, as plain data."""
    found = predictor.answer(path, arguments.text, arguments.top)[0]
    return {"question": arguments.text, "answers": on_images.plain(found)}
