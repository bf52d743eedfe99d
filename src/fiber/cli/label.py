"""`fiber label`: boxes of a trained detector as a first draft for a labelling tool."""

import argparse

from fiber.cli import detect, on_images

DESCRIPTION = """Boxes of a trained detector, for a labelling tool (CVAT, Label Studio, ...) to import and correct:

    fiber label --model runs/own --image photos/ --out draft.coco.json

The file names in it are relative to the folder. What was corrected there is training data: fiber shards boxes.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    on_images.detection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Every image of --image; -> exit status."""
    if not any(out.name.endswith(".coco.json") for out in arguments.out):
        raise ValueError("label writes COCO's format: give --out FILE.coco.json")
    classes = on_images.class_list(arguments)
    return on_images.over_images(
        arguments, detect.results, classes=lambda model: model.class_order(classes), verb="detect"
    )
