"""What the verbs on one's own images share: options, the loop over images, JSON and drawings.

--model is an export folder, a run directory or a hub id. --image takes files, folders and globs. Results go to stdout
as JSON, one object per image; --out FILE.json writes them there, --out FILE.png draws them (with several images
FILE-NUMBER-NAME.png each), and may be given twice.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from fiber.predict.base import Predictor

Result = dict[str, Any]  # of one image: "image" and what the verb found
OneImage = Callable[[Any, Path, argparse.Namespace], Result]


def common(parser: argparse.ArgumentParser) -> None:
    """The options that every verb on one's own images has."""
    parser.add_argument("--model", required=True, help="export folder, run directory or hub id")
    parser.add_argument("--image", required=True, nargs="+", help="files, folders or globs")
    parser.add_argument("--out", type=Path, action="append", default=[], help="FILE.json or FILE.png")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")


def share(text: str) -> float:
    """A number of 0 to 1 (30 for 30 % would find nothing, and not say why)."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..1")
    return number


def predictor(arguments: argparse.Namespace) -> Predictor:
    """The model of --model, which must offer the verb; --out is checked first.

    Raises WeightsError, TaskError, ValueError.
    """
    import fiber

    for out in arguments.out:
        if out.suffix not in (".json", ".png"):
            raise ValueError(f"--out {out}: give a name ending in .json or .png")
    found = fiber.load(arguments.model, arguments.device, arguments.dtype)
    found.require(arguments.verb)
    return found


def over_images(arguments: argparse.Namespace, one_image: OneImage) -> int:
    """One result per image, written; images of folders and globs that cannot be read are skipped and named."""
    from fiber.predict.sources import ImageError, expand

    model = predictor(arguments)
    results, faults = [], []
    paths = expand(arguments.image)
    for path in paths:
        try:
            results.append({"image": str(path)} | one_image(model, path, arguments))
        except ImageError as error:
            if len(paths) == 1:
                raise
            faults.append(str(error))
    if not results:
        raise ImageError(f"none of {len(paths)} images could be read: {faults[0]}")
    finish(results, faults, arguments)
    return 0


def finish(results: list[Result], faults: Sequence[str], arguments: argparse.Namespace) -> None:
    """Write the results and name the images that were left out."""
    write(results, arguments)
    for fault in faults:
        print(f"skipped {fault}", file=sys.stderr)


def plain(found: Sequence[Any]) -> list[dict[str, Any]]:
    """Dataclasses as dicts without empty fields."""
    return [{k: v for k, v in dataclasses.asdict(item).items() if v is not None} for item in found]


# ---------------------------------------------------------------------------------------------- output


def write(results: list[Result], arguments: argparse.Namespace) -> None:
    """JSON to stdout or a file, drawings to files."""
    text = "\n".join(json.dumps(result, ensure_ascii=False) for result in results)
    if not any(out.suffix == ".json" for out in arguments.out):
        print(text)
    for out in arguments.out:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".json":
            out.write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n")
        else:
            for number, result in enumerate(results):
                name = f"{out.stem}-{number:03d}-{Path(result.get('image', '')).stem}.png".replace("-.", ".")
                drawing(result).save(out if len(results) == 1 else out.with_name(name))


def drawing(result: Result) -> Image.Image:
    """The image of one result with what was found in it."""
    from fiber.images.draw import contact_sheet, draw_boxes, draw_text
    from fiber.predict.sources import open_image

    if "images" in result:
        found = result["images"]
        labels = [f"{entry['score']:.2f} {Path(entry['image']).name}" for entry in found]
        return draw_text(contact_sheet([open_image(entry["image"]).image for entry in found], labels), result["text"])
    image = open_image(result["image"])
    if "regions" not in result:
        return draw_text(image.image, sentence_of(result))
    regions, size = result["regions"], (image.width, image.height)
    labels = [f"{region['label']} {region['score']:.2f}" for region in regions]
    kinds = list(dict.fromkeys(str(region.get("span", region["label"])) for region in regions))
    colours = [kinds.index(str(region.get("span", region["label"]))) for region in regions]
    drawn = draw_boxes(image.image, size, [region["box"] for region in regions], labels, colours)
    if "sentence" not in result:
        return drawn
    coloured = dict(zip((tuple(region["span"]) for region in regions), colours, strict=True))
    return draw_text(drawn, result["sentence"], list(coloured), list(coloured.values()))


def sentence_of(result: Result) -> str:
    """What to write below an image without regions."""
    if "captions" in result:
        return result["captions"][0]["text"]
    if "answers" in result:
        return f"{result['question']} {result['answers'][0]['text']}"
    if "texts" in result:
        return "; ".join(f"{entry['text']} {entry['score']:.2f}" for entry in result["texts"])
    return f"{result['text']}: {result['probability']:.2f}"
