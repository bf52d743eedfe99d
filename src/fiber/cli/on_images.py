"""What the verbs on one's own images share: options, the way over many images, JSON and drawings.

--model is an export folder, a run directory or a hub id. --image takes files, folders, globs and tars. Results go to
stdout as JSON lines, one object per image; --out writes them to FILE.json (a list), FILE.jsonl, FILE.parquet, or
FILE.coco.json (COCO's format; of regions and captions), or draws them, FILE.png (with several images
FILE-NUMBER-NAME.png each). It may be given several times. A run that was killed goes on when it is started again:
what it has done lies in FILE.journal until FILE is whole.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiber.cli.numbers import real_number, whole_number

if TYPE_CHECKING:
    from PIL import Image

    from fiber.predict.base import Predictor
    from fiber.predict.journal import Entry, Journal
    from fiber.predict.listing import ImageList
    from fiber.predict.sources import ImageFile, Prepared

Result = dict[str, Any]  # of one image: "image" and what the verb found
Compute = Callable[[Any, "list[Prepared]", argparse.Namespace], list[Result]]
Sheet = Callable[[Any, "ImageFile", argparse.Namespace], "Image.Image"]  # --heat of one image
NAMED = 10  # unreadable images that are named; of more only the number is told


def common(parser: argparse.ArgumentParser, image: bool = True) -> None:
    """The options that every verb on one's own images has. `image`: whether --image must be given."""
    parser.add_argument("--model", required=True, help="export folder, run directory or hub id")
    parser.add_argument("--image", required=image, nargs="+", default=[], help="files, folders, globs or tars")
    parser.add_argument(
        "--out", type=Path, action="append", default=[], help="FILE.json, .jsonl, .parquet, .coco.json or .png"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="what is computed in")
    parser.add_argument(
        "--batch", type=whole_number(1), help="images at a time (default: 64 on a card, halved where it is full)"
    )
    parser.add_argument("--workers", type=whole_number(1, 1024), help="threads that decode (default: one per core)")


def detection(parser: argparse.ArgumentParser) -> None:
    """The options of detection."""
    parser.add_argument("--text", help="class names, separated by commas (default: those the model was trained on)")
    parser.add_argument(
        "--threshold",
        type=real_number(0, 1),
        help="least score, 0..1 (default: the one calibrated in training, else 0.3)",
    )
    parser.add_argument(
        "--all-labels", action="store_true", help="every label of a place, not only the one with the best score"
    )


def heat(parser: argparse.ArgumentParser, of: str) -> None:
    """The option that draws where each word or phrase looked."""
    parser.add_argument(
        "--heat", metavar="FILE.png", help=f"what each {of} looked at; several images: FILE-NUMBER-NAME.png each"
    )


def predictor(arguments: argparse.Namespace, verb: str | None = None) -> Predictor:
    """The model of --model, which must offer the verb (default: the one that was called).

    Raises WeightsError, TaskError, ValueError.
    """
    import fiber

    found = fiber.load(arguments.model, arguments.device, arguments.dtype)
    found.require(verb or arguments.verb)
    found.batch, found.workers = arguments.batch or found.batch, arguments.workers
    return found


def class_list(arguments: argparse.Namespace) -> list[str] | None:
    """The classes of --text, None without it. Raises ValueError for a text that names none."""
    from fiber.predict.phrases import class_names

    if arguments.text is None:
        return None
    if not (names := class_names(arguments.text)):
        raise ValueError(f"--text {arguments.text!r} names no class: give some, separated by commas, or leave it out "
                         "for those that the model was trained on")  # fmt: skip
    return names


def check_outs(arguments: argparse.Namespace) -> list[Path]:
    """The tables among --out, every name checked before any work. Raises ValueError."""
    from fiber.predict.results import COCO, COCO_VERBS, PARQUET, kind_of_file, parquet

    tables = []
    for out in arguments.out:
        kind = kind_of_file(out)
        if kind is None and out.suffix != ".png":
            raise ValueError(f"--out {out}: give a name ending in .json or .png (or .jsonl, .parquet, .coco.json)")
        if kind == COCO and arguments.verb not in COCO_VERBS:
            raise ValueError(f"--out {out}: COCO's format has no place for what `{arguments.verb}` finds")
        if kind == PARQUET:
            parquet()
        if kind is not None:
            tables.append(out)
        else:
            _check_drawing("--out", out, arguments.image)
        out.parent.mkdir(parents=True, exist_ok=True)
    if sheet := getattr(arguments, "heat", None):
        if Path(sheet).suffix != ".png":
            raise ValueError(f"--heat {sheet}: give a name ending in .png")
        _check_drawing("--heat", Path(sheet), arguments.image)
        Path(sheet).parent.mkdir(parents=True, exist_ok=True)
    return tables


def _check_drawing(option: str, out: Path, sources: Sequence[str]) -> None:
    """Raises ValueError where the next run would take drawings for images: in a folder of --image, or of a glob."""
    for source in sources:
        inside = Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve())
        listed = not Path(source).exists() and fnmatch(os.path.abspath(out), os.path.abspath(source))
        if inside or listed:
            raise ValueError(f"{option} {out} is inside of --image {source}, where the next run would take the "
                             "drawings for images: write them elsewhere")  # fmt: skip


def over_images(
    arguments: argparse.Namespace,
    compute: Compute,
    *,
    classes: Callable[[Any], Sequence[str]] | None = None,
    verb: str | None = None,
    sheet: Sheet | None = None,
) -> int:
    """One result per image, in batches, to stdout, tables and drawings; images that cannot be read are skipped and
    named. `compute` gives what is found in each image of a batch; `classes`: of a COCO file, given the model; `verb`:
    what the model must offer; `sheet`: draws what --heat asks for."""
    from fiber.predict.journal import Journal
    from fiber.predict.listing import ImageList
    from fiber.predict.results import COCO, kind_of_file, write_table
    from fiber.predict.sources import ImageError

    tables = check_outs(arguments)
    model, files = predictor(arguments, verb), ImageList(arguments.image)
    total = len(files)
    if not tables:
        found = _entries(model, files, compute, arguments, None, sheet)
        faults = [entry.fault for entry in found if entry.fault]
    else:
        journal = Journal(tables[0], _asked(arguments, model))
        try:
            for _ in _entries(model, files, compute, arguments, journal, sheet):
                pass
            faults = [entry.fault for entry in journal if entry.fault]
            for out in tables if len(faults) < total else ():
                coco = kind_of_file(out) == COCO
                write_table(out, partial(_rows, journal, coco), classes(model) if coco and classes else ())
            journal.remove()
        finally:
            journal.close()
    if len(faults) == total:
        raise ImageError(faults[0] if total == 1 else f"none of {total} images could be read: {faults[0]}")
    name_faults(faults)
    return 0


def _entries(
    model: Predictor,
    files: ImageList,
    compute: Compute,
    arguments: argparse.Namespace,
    journal: Journal | None,
    sheet: Sheet | None,
) -> Iterator[Entry]:
    """The entries of the images that the journal lacks, drawn where drawings are wanted and added to the journal,
    or printed where there is none."""
    from fiber.countdown import Countdown
    from fiber.predict.journal import each_batch, entry_of
    from fiber.predict.results import as_json, rounded
    from fiber.predict.sources import Prepared

    total, number = len(files), 0 if journal is None else sum(1 for _ in journal)
    shown = Countdown(arguments.verb, total, show=total > model.batch)
    for group in each_batch(model, files, set() if journal is None else journal.done, shown):
        images = [image for _, image in group if isinstance(image, Prepared)]
        found, entries = iter(compute(model, images, arguments) if images else ()), []
        for file, image in group:
            row = None
            if isinstance(image, Prepared):
                about = {"image": file.name, "width": image.width, "height": image.height}
                row = rounded(about | next(found))
                for out in arguments.out:
                    if out.suffix == ".png":
                        drawing(row, file).save(_numbered(out, file, number, total))
                if sheet and arguments.heat:
                    sheet(model, file, arguments).save(_numbered(Path(arguments.heat), file, number, total))
                if journal is None:
                    print(as_json(row))
            entries.append(entry_of(file, image, row))
            number += 1
        if journal is not None:
            journal.append(entries)
        yield from entries
    shown.close()


def _rows(journal: Journal, relative: bool) -> Iterator[Result]:
    """The results of a journal; `relative`: with the names that images have below their folder."""
    for entry in journal:
        if entry.fault is None:
            yield entry.row | {"image": entry.name} if relative else entry.row


def name_faults(faults: Sequence[str]) -> None:
    """Name the images that were left out, the first ones if there are many."""
    for fault in faults[:NAMED]:
        print(f"skipped {fault}", file=sys.stderr)
    if len(faults) > NAMED:
        print(f"skipped {len(faults) - NAMED} more, {len(faults)} in all", file=sys.stderr)


def _asked(arguments: argparse.Namespace, model: Predictor) -> dict[str, Any]:
    """What the results depend on, for the journal."""
    apart = ("out", "device", "workers", "model")
    asked = {key: value for key, value in vars(arguments).items() if key not in apart}
    return {"model": model.fingerprint()} | asked | {"batch": model.batch}


def plain(found: Iterable[Any]) -> list[dict[str, Any]]:
    """Dataclasses as dicts without empty fields."""
    return [{k: v for k, v in dataclasses.asdict(item).items() if v is not None} for item in found]


# ---------------------------------------------------------------------------------------------- drawings


def _numbered(out: Path, file: ImageFile, number: int, total: int) -> Path:
    """Where the drawing of an image goes: `out`, or of several FILE-NUMBER-NAME.png each."""
    return out if total == 1 else out.with_name(f"{out.stem}-{number:03d}-{Path(file.name).stem}.png")


def drawing(result: Result, file: ImageFile) -> Image.Image:
    """The image of one result with what was found in it."""
    from fiber.images.draw import draw_boxes, draw_text
    from fiber.predict.sources import open_image

    image = open_image(file)
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
    if "classes" in result:
        return f"{result['classes'][0]['text']} {result['classes'][0]['score']:.2f}"
    if "texts" in result:
        return "; ".join(f"{entry['text']} {entry['score']:.2f}" for entry in result["texts"])
    return f"{result['text']}: {result['probability']:.2f}"
