"""`fiber ground`: a region for each phrase of a sentence."""

import argparse
from pathlib import Path
from typing import Any

from fiber.cli import on_images

DESCRIPTION = """A region for each phrase of a sentence:

    fiber ground --model runs/demo/stage2 --image photo.jpg --text "[a red circle] left of [two dogs]"
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    parser.add_argument(
        "--text", required=True, help="the sentence; mark phrases with [brackets] or let them be found"
    )
    parser.add_argument("--threshold", type=on_images.share, default=0.0, help="least score, 0..1")
    parser.add_argument("--top", type=int, default=1, help="how many (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Every image of --image; -> exit status."""
    return on_images.over_images(arguments, one_image)


def one_image(predictor: Any, path: Path, arguments: argparse.Namespace) -> on_images.Result:
    """What is found in one image, as plain data."""
    from fiber.predict.phrases import find_phrases

    sentence, _ = find_phrases(arguments.text, None)
    found = predictor.ground(path, arguments.text, top=arguments.top, threshold=arguments.threshold)[0]
    return {"sentence": sentence, "regions": on_images.plain(found)}
