"""`fiber ground`: a region for each phrase of a sentence."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from fiber.cli import on_images
from fiber.cli.numbers import real_number, whole_number

if TYPE_CHECKING:
    from PIL import Image

    from fiber.predict.sources import ImageFile

DESCRIPTION = """A region for each phrase of a sentence:

    fiber ground --model runs/demo/stage2 --image photo.jpg --text "[a red circle] left of [two dogs]"
    ... --heat heat.png                                  and what each phrase looked at
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    parser.add_argument(
        "--text", required=True, help="the sentence; mark phrases with [brackets] or let them be found"
    )
    parser.add_argument("--threshold", type=real_number(0, 1), default=0.0, help="least score, 0..1")
    parser.add_argument("--top", type=whole_number(1), default=1, help="how many (default: %(default)s)")
    on_images.heat(parser, "phrase")


def run(arguments: argparse.Namespace) -> int:
    """Every image of --image; -> exit status."""
    from fiber.predict.phrases import find_phrases, found_phrases

    find_phrases(arguments.text, None)  # before the model is loaded: there may be none
    if "[" not in arguments.text:
        spans, by = found_phrases(arguments.text)
        how = "spaCy's parser" if by == "spacy" else "a rule (spaCy is not installed)"
        listed = " ".join(f"[{arguments.text[start:end]}]" for start, end in spans)
        print(f"phrases by {how}: {listed}", file=sys.stderr)
    return on_images.over_images(arguments, results, sheet=sheet)


def results(predictor: Any, images: list[Any], arguments: argparse.Namespace) -> list[on_images.Result]:
    """What is found in each image of a batch, as plain data."""
    from fiber.predict.phrases import find_phrases

    sentence, _ = find_phrases(arguments.text, None)
    found = predictor.ground(images, arguments.text, None, arguments.top, arguments.threshold)
    return [{"sentence": sentence, "regions": on_images.plain(regions)} for regions in found]


def sheet(predictor: Any, file: ImageFile, arguments: argparse.Namespace) -> Image.Image:
    """What each phrase looked at."""
    from fiber.predict.heat import heat_sheet
    from fiber.predict.phrases import find_phrases

    sentence, spans = find_phrases(arguments.text, None)
    return heat_sheet(predictor, file, sentence, spans)
