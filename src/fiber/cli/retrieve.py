"""`fiber retrieve`: the images that fit a text best, or the texts that fit an image best."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fiber.cli import on_images
from fiber.cli.numbers import whole_number

if TYPE_CHECKING:
    from PIL import Image

    from fiber.predict.image import CoarsePredictor
    from fiber.predict.image_index import ImageIndex

DESCRIPTION = """The images that fit a text best; with one image, the texts that fit it best:

    fiber retrieve --model runs/demo/stage1 --image photos/ --text "a red circle"

The features of a folder's images are kept in the user's cache and used again; --index FILE.npz keeps them there
instead, and reads what `fiber embed` has written.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    on_images.common(parser)
    parser.add_argument("--text", required=True, nargs="+", help="one text or several")
    parser.add_argument("--top", type=whole_number(1), default=5, help="how many (default: %(default)s)")
    parser.add_argument("--index", type=Path, help="index file (default: in $FIBER_CACHE, else ~/.cache/fiber)")
    parser.add_argument(
        "--rerank", type=whole_number(0), default=0, help="how many of the best the matching head orders again"
    )


def run(arguments: argparse.Namespace) -> int:
    """One result per text, or one of a single image; -> exit status."""
    from fiber.predict.image import CoarsePredictor
    from fiber.predict.listing import ImageList

    if odd := [
        out for out in arguments.out if out.suffix not in (".json", ".png") or out.name.endswith(".coco.json")
    ]:
        raise ValueError(f"--out {odd[0]}: give a name ending in .json or .png")
    if not all(text.strip() for text in arguments.text):  # before the images are read
        raise ValueError("--text: a text is empty")
    predictor = on_images.predictor(arguments)
    assert isinstance(predictor, CoarsePredictor)  # only such offer it
    files = ImageList(arguments.image)
    if files.has_many or arguments.index:
        index = predictor.index(arguments.image, arguments.index, progress=True)
        counts = f"{len(index.paths)} images, {index.encoded} of them encoded now"
        print(f"index of {', '.join(arguments.image)}: {counts}", file=sys.stderr)
    else:
        index = predictor.index_of(arguments.image)
    alone = len(files) == 1
    results = _texts_of_one(predictor, index, arguments) if alone else []
    for text in () if alone else arguments.text:
        found = predictor.retrieve(index, text, arguments.top, arguments.rerank)
        results.append({"text": text, "images": [{"image": hit.text, "score": hit.score} for hit in found]})
    _write(results, index, arguments)
    on_images.name_faults(index.unreadable)
    return 0


def _texts_of_one(
    predictor: "CoarsePredictor", index: "ImageIndex", arguments: argparse.Namespace
) -> list[on_images.Result]:
    """The texts for the one image of an index, best first."""
    scores = (predictor.embed_texts(arguments.text) @ index.features[0]).tolist()
    ranked = sorted(zip(arguments.text, scores, strict=True), key=lambda pair: -pair[1])[: arguments.top]
    texts = [{"text": text, "score": score} for text, score in ranked]
    return [{"image": index.files.file(index.paths[0]).name, "texts": texts}]


def _write(results: list[on_images.Result], index: "ImageIndex", arguments: argparse.Namespace) -> None:
    """JSON to stdout or a file, drawings to files."""
    from fiber.predict.results import as_json, rounded, write_table

    results = rounded(results)
    if not any(out.suffix == ".json" for out in arguments.out):
        print("\n".join(map(as_json, results)))
    for out in arguments.out:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".json":
            write_table(out, lambda: results)
            continue
        for number, result in enumerate(results):
            place = out if len(results) == 1 else out.with_name(f"{out.stem}-{number:03d}.png")
            _sheet(result, index).save(place)


def _sheet(result: on_images.Result, index: "ImageIndex") -> "Image.Image":
    """The hits of a text with their ranks and scores, or the one image with its texts."""
    from fiber.images.draw import contact_sheet, draw_text
    from fiber.predict.sources import open_image

    if "images" not in result:
        return on_images.drawing(result, index.files.file(index.paths[0]))
    files = {file.name: file for file in map(index.files.file, index.paths)}
    hits = result["images"]
    labels = [f"{rank}. {hit['score']:.2f} {Path(hit['image']).name}" for rank, hit in enumerate(hits, start=1)]
    images = [open_image(files[hit["image"]]).image for hit in hits]
    return draw_text(contact_sheet(images, labels), result["text"])
