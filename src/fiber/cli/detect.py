"""`fiber detect`: objects of the named classes."""

import argparse
from pathlib import Path
from typing import Any

from fiber.cli import on_images

DESCRIPTION = """Objects of the named classes:

    fiber detect --model runs/demo/stage2 --image photo.jpg --text "red circle, blue square"
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    parser.add_argument("--text", help="class names, separated by commas (default: those the model was trained on)")
    parser.add_argument("--threshold", type=on_images.share, default=0.3, help="least score, 0..1")


def run(arguments: argparse.Namespace) -> int:
    """Every image of --image; -> exit status."""
    return on_images.over_images(arguments, one_image)


def one_image(predictor: Any, path: Path, arguments: argparse.Namespace) -> on_images.Result:
    """What is found in one image, as plain data."""
    from fiber.predict.phrases import class_names

    names = class_names(arguments.text or "")
    return {"regions": on_images.plain(predictor.detect(path, names or None, arguments.threshold)[0])}
