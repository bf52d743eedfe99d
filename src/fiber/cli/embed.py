"""`fiber embed`: contrastive features of images or texts, in a file."""

import argparse
import sys
from pathlib import Path

from fiber.cli import on_images

DESCRIPTION = """Contrastive features of images or of texts, unit vectors that are compared by their product:

    fiber embed --model runs/demo/stage1 --image photos/ --out photos.npz
    fiber embed --model runs/demo/stage1 --text "a red circle" "two dogs" --out texts.npz

FILE.npz has the arrays `features` (N,H) float32 and `names` (N,); made again, only new and changed images are
computed. `fiber retrieve --index FILE.npz` reads it. FILE.parquet has the columns `image` and `features`.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser, image=False)
    parser.add_argument("--text", nargs="+", default=[], help="texts, instead of images")


def run(arguments: argparse.Namespace) -> int:
    """All images or texts; -> exit status."""
    from fiber.predict.feature_file import write_texts
    from fiber.predict.image import CoarsePredictor
    from fiber.predict.image_index import build_index
    from fiber.predict.listing import ImageList
    from fiber.predict.results import parquet

    if bool(arguments.image) == bool(arguments.text):
        raise ValueError("give either --image or --text")
    out = _out(arguments.out)
    if out.suffix == ".parquet":
        parquet()
    out.parent.mkdir(parents=True, exist_ok=True)
    predictor = on_images.predictor(arguments)
    assert isinstance(predictor, CoarsePredictor)  # only such offer it
    if arguments.text:
        write_texts(out, arguments.text, predictor.embed_texts(arguments.text).numpy())
        return 0
    report = build_index(predictor, ImageList(arguments.image), out, progress=True)
    print(f"{out}: {report.images} images, {report.encoded} of them encoded now", file=sys.stderr)
    on_images.name_faults(report.unreadable)
    return 0


def _out(outs: list[Path]) -> Path:
    """The one file to write. Raises ValueError."""
    if len(outs) != 1 or outs[0].suffix not in (".npz", ".parquet"):
        raise ValueError("embed writes one file: give --out FILE.npz or FILE.parquet")
    return outs[0]
