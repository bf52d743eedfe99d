"""`fiber caption`: captions of images."""

import argparse
from pathlib import Path
from typing import Any

from fiber.cli import on_images

DESCRIPTION = """Describe images:

    fiber caption --model runs/demo/stage1 --image photo.jpg
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    parser.add_argument("--method", choices=("beam", "greedy", "nucleus"), default="beam")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--top-p", type=float, default=0.9, help="of nucleus sampling")
    parser.add_argument("--temperature", type=float, default=1.0, help="of nucleus sampling")
    parser.add_argument("--seed", type=int, default=0, help="of nucleus sampling")


def run(arguments: argparse.Namespace) -> int:
    """Every image of --image; -> exit status."""
    return on_images.over_images(arguments, one_image)


def one_image(predictor: Any, path: Path, arguments: argparse.Namespace) -> on_images.Result:
    """What is found in one image, as plain data."""
    options = {"method": arguments.method, "beams": arguments.beams, "top_p": arguments.top_p}
    options |= {"temperature": arguments.temperature, "seed": arguments.seed}
    return {"captions": on_images.plain(predictor.caption(path, **options)[0])}
