"""`fiber caption`: captions of images."""

import argparse
from typing import Any

from fiber.cli import on_images
from fiber.cli.numbers import real_number, whole_number

DESCRIPTION = """Describe images:

    fiber caption --model runs/demo/stage1 --image photo.jpg
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    parser.add_argument(
        "--method", choices=("beam", "greedy", "nucleus"), default="beam", help="how words are chosen"
    )
    parser.add_argument(
        "--beams", type=whole_number(1, 1024), default=5, help="captions kept at each step of beam search"
    )
    parser.add_argument("--top", type=whole_number(1), default=5, help="how many of the beams (default: %(default)s)")
    parser.add_argument("--top-p", type=real_number(above=0, most=1), default=0.9, help="of nucleus sampling")
    parser.add_argument("--temperature", type=real_number(above=0), default=1.0, help="of nucleus sampling")
    parser.add_argument("--seed", type=whole_number(0, 2**64 - 1), default=0, help="of nucleus sampling")


def run(arguments: argparse.Namespace) -> int:
    """Every image of --image; -> exit status."""
    return on_images.over_images(arguments, results)


def results(predictor: Any, images: list[Any], arguments: argparse.Namespace) -> list[on_images.Result]:
    """What is found in each image of a batch, as plain data."""
    options = {"method": arguments.method, "beams": arguments.beams, "top_p": arguments.top_p}
    options |= {"temperature": arguments.temperature, "seed": arguments.seed}
    return [{"captions": on_images.plain(found)[: arguments.top]} for found in predictor.caption(images, **options)]
