"""`fiber detect`: objects of the named classes."""

import argparse
from typing import Any

from fiber.cli import on_images

DESCRIPTION = """Objects of the named classes:

    fiber detect --model runs/demo/stage2 --image photo.jpg --text "red circle, blue square"
    fiber detect --model runs/own --image photos/ --out found.coco.json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    on_images.detection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Every image of --image; -> exit status."""
    names = on_images.class_list(arguments)
    return on_images.over_images(arguments, results, classes=lambda model: model.class_order(names))


def results(predictor: Any, images: list[Any], arguments: argparse.Namespace) -> list[on_images.Result]:
    """What is found in each image of a batch, as plain data."""
    options = {"threshold": arguments.threshold, "all_labels": arguments.all_labels}
    found = predictor.detect(images, on_images.class_list(arguments), **options)
    return [{"regions": on_images.plain(regions)} for regions in found]
