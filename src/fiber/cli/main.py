"""The `fiber` command: a trained model on one's own images.

    fiber caption  --model DIR --image FILE ...                       captions
    fiber answer   --model DIR --image FILE ... --text QUESTION       answers to a question
    fiber match    --model DIR --image FILE ... --text TEXT           how well a text fits
    fiber retrieve --model DIR --image FOLDER   --text TEXT ...       the images that fit a text best; with one
                                                                     image the texts that fit it best
    fiber ground   --model DIR --image FILE ... --text SENTENCE       a region for each phrase
    fiber refer    --model DIR --image FILE ... --text EXPRESSION     the one region that is meant
    fiber detect   --model DIR --image FILE ... [--text "a, b, c"]    objects of the named classes

DIR is an export folder, a run directory or a hub id. --image takes files, folders and globs. Results go to stdout as
JSON, one object per image; --out FILE.json writes them there, --out FILE.png draws them (with several images
FILE-NUMBER-NAME.png each), and may be given twice. Exit status: 0 done, 1 a clear error, 2 wrong usage.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import fiber
from fiber.errors import WeightsError
from fiber.images.draw import contact_sheet, draw_boxes, draw_text
from fiber.predict.base import Predictor, TaskError
from fiber.predict.image import CoarsePredictor
from fiber.predict.phrases import class_names, find_phrases
from fiber.predict.sources import ImageError, expand, open_image

Result = dict[str, Any]  # of one image: "image" and what the task found


def parser() -> argparse.ArgumentParser:
    """One sub-command per task, each with its own options."""
    top = argparse.ArgumentParser(
        prog="fiber", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = top.add_subparsers(dest="task", metavar="TASK", required=True)
    texts = {
        "caption": None,
        "answer": "the question",
        "match": "the text",
        "retrieve": "one text or several",
        "ground": "the sentence; mark phrases with [brackets] or let them be found",
        "refer": "the expression",
        "detect": "class names, separated by commas (default: those the model was trained on)",
    }
    subs = {}
    for task, text in texts.items():
        sub = subs[task] = tasks.add_parser(task, help=(text or "describe images"))
        sub.add_argument("--model", required=True, help="export folder, run directory or hub id")
        sub.add_argument("--image", required=True, nargs="+", help="files, folders or globs")
        if text:
            several = {"nargs": "+"} if task == "retrieve" else {}
            sub.add_argument("--text", required=task != "detect", help=text, **several)
        sub.add_argument("--out", type=Path, action="append", default=[], help="FILE.json or FILE.png")
        sub.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
        sub.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    subs["caption"].add_argument("--method", choices=("beam", "greedy", "nucleus"), default="beam")
    subs["caption"].add_argument("--beams", type=int, default=5)
    subs["caption"].add_argument("--top-p", type=float, default=0.9, help="of nucleus sampling")
    subs["caption"].add_argument("--temperature", type=float, default=1.0, help="of nucleus sampling")
    subs["caption"].add_argument("--seed", type=int, default=0, help="of nucleus sampling")
    for task, top_default in (("answer", 5), ("retrieve", 5), ("ground", 1), ("refer", 1)):
        subs[task].add_argument("--top", type=int, default=top_default, help="how many (default: %(default)s)")
    subs["retrieve"].add_argument("--index", type=Path, help="index file (default: in the folder)")
    subs["retrieve"].add_argument(
        "--rerank", type=int, default=0, help="how many of the best the matching head orders again"
    )
    subs["ground"].add_argument("--threshold", type=share, default=0.0, help="least score, 0..1")
    subs["detect"].add_argument("--threshold", type=share, default=0.3, help="least score, 0..1")
    return top


def share(text: str) -> float:
    """A number of 0 to 1 (30 for 30 % would find nothing, and not say why)."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..1")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; -> exit status."""
    arguments = parser().parse_args(argv)
    try:
        for out in arguments.out:
            if out.suffix not in (".json", ".png"):
                raise ValueError(f"--out {out}: give a name ending in .json or .png")
        predictor = fiber.load(arguments.model, arguments.device, arguments.dtype)
        predictor.require(arguments.task)
        results, faults = run(predictor, arguments)
        write(results, arguments)
    except (WeightsError, TaskError, ImageError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for fault in faults:
        print(f"skipped {fault}", file=sys.stderr)
    return 0


def run(predictor: Predictor, arguments: argparse.Namespace) -> tuple[list[Result], list[str]]:
    """Results of every image, and the images of folders and globs that could not be read."""
    if arguments.task == "retrieve":
        assert isinstance(predictor, CoarsePredictor)  # only such offer it
        return retrieve(predictor, arguments)
    results, faults = [], []
    paths = expand(arguments.image)
    for path in paths:
        try:
            results.append({"image": str(path)} | one_image(predictor, path, arguments))
        except ImageError as error:
            if len(paths) == 1:
                raise
            faults.append(str(error))
    if not results:
        raise ImageError(f"none of {len(paths)} images could be read: {faults[0]}")
    return results, faults


def one_image(predictor: Predictor, path: Path, arguments: argparse.Namespace) -> Result:
    """What the task finds in one image, as plain data."""
    match arguments.task:
        case "caption":
            options = {"method": arguments.method, "beams": arguments.beams, "top_p": arguments.top_p}
            options |= {"temperature": arguments.temperature, "seed": arguments.seed}
            return {"captions": plain(predictor.caption(path, **options)[0])}
        case "answer":
            found = predictor.answer(path, arguments.text, arguments.top)[0]
            return {"question": arguments.text, "answers": plain(found)}
        case "match":
            return {"text": arguments.text} | dataclasses.asdict(predictor.match(path, arguments.text)[0])
        case "ground":
            sentence, _ = find_phrases(arguments.text, None)
            found = predictor.ground(path, arguments.text, top=arguments.top, threshold=arguments.threshold)[0]
            return {"sentence": sentence, "regions": plain(found)}
        case "refer":
            found = predictor.refer(path, arguments.text, arguments.top)[0]
            return {"expression": arguments.text, "regions": plain(found)}
        case _:
            names = class_names(arguments.text or "")
            return {"regions": plain(predictor.detect(path, names or None, arguments.threshold)[0])}


def retrieve(predictor: CoarsePredictor, arguments: argparse.Namespace) -> tuple[list[Result], list[str]]:
    """One result a text with the images that fit it best; or, of a single image, the texts that fit it best.
    The features of a folder's images are kept and used again."""
    sources = [Path(source) for source in arguments.image]
    if len(sources) == 1 and sources[0].is_dir():
        index = predictor.index(sources[0], arguments.index)
        print(
            f"index of {sources[0]}: {len(index.paths)} images, {index.encoded} of them encoded now",
            file=sys.stderr,
        )
    else:
        index = predictor.index_of(expand(sources))
    if len(index.paths) == 1:
        scores = (predictor.embed_texts(arguments.text) @ index.features[0]).tolist()
        ranked = sorted(zip(arguments.text, scores, strict=True), key=lambda pair: -pair[1])[: arguments.top]
        texts = [{"text": text, "score": score} for text, score in ranked]
        return [{"image": str(index.folder / index.paths[0]), "texts": texts}], index.unreadable
    results = []
    for text in arguments.text:
        found = predictor.retrieve(index, text, arguments.top, arguments.rerank)
        results.append({"text": text, "images": [{"image": scored.text, "score": scored.score} for scored in found]})
    return results, index.unreadable


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


if __name__ == "__main__":
    sys.exit(main())
