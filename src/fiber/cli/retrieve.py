"""`fiber retrieve`: the images that fit a text best, or the texts that fit an image best."""

import argparse
import sys
from pathlib import Path

from fiber.cli import on_images

DESCRIPTION = """The images that fit a text best; with one image, the texts that fit it best:

    fiber retrieve --model runs/demo/stage1 --image photos/ --text "a red circle"

The features of a folder's images are kept and used again.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    parser.add_argument("--text", required=True, nargs="+", help="one text or several")
    parser.add_argument("--top", type=int, default=5, help="how many (default: %(default)s)")
    parser.add_argument("--index", type=Path, help="index file (default: in the folder)")
    parser.add_argument("--rerank", type=int, default=0, help="how many of the best the matching head orders again")


def run(arguments: argparse.Namespace) -> int:
    """One result per text, or one of a single image; -> exit status."""
    from fiber.predict.image import CoarsePredictor
    from fiber.predict.sources import expand

    predictor = on_images.predictor(arguments)
    assert isinstance(predictor, CoarsePredictor)  # only such offer it
    sources = [Path(source) for source in arguments.image]
    if len(sources) == 1 and sources[0].is_dir():
        index = predictor.index(sources[0], arguments.index)
        print(
            f"index of {sources[0]}: {len(index.paths)} images, {index.encoded} of them encoded now",
            file=sys.stderr,
        )
    else:
        index = predictor.index_of(expand(sources))
    results = []
    if len(index.paths) == 1:
        scores = (predictor.embed_texts(arguments.text) @ index.features[0]).tolist()
        ranked = sorted(zip(arguments.text, scores, strict=True), key=lambda pair: -pair[1])[: arguments.top]
        texts = [{"text": text, "score": score} for text, score in ranked]
        results.append({"image": str(index.folder / index.paths[0]), "texts": texts})
    else:
        for text in arguments.text:
            found = predictor.retrieve(index, text, arguments.top, arguments.rerank)
            images = [{"image": scored.text, "score": scored.score} for scored in found]
            results.append({"text": text, "images": images})
    on_images.finish(results, index.unreadable, arguments)
    return 0
