"""Turn a data set as downloaded into clean, indexed WebDataset shards that both stages read.

    python tools/make_shards.py DATASET --raw DIR --out DIR [--split S] [--workers N] [--limit N]

Run the same command again after an interruption: it goes on and ends with the same bytes. What was left out, and why,
is in OUT/drops.jsonl. docs/data.md says for every DATASET where to get it and which folder is expected. The last line
of stdout is a JSON summary. Exit status: 0 done, 1 a clear error, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

import fiber.data.convert
from fiber.data.convert.engine import ConversionOptions, convert
from fiber.data.convert.items import ConversionError, RawDataset, Request
from fiber.data.convert.packing import Packing
from fiber.data.convert.verdict import report
from fiber.data.records import RecordError
from fiber.errors import ShardError


def _modules() -> dict[str, ModuleType]:
    names = [found.name for found in pkgutil.iter_modules(fiber.data.convert.__path__)]
    modules = {name: importlib.import_module(f"fiber.data.convert.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "SPLITS")}


DATASETS = _modules()
"""The data sets: modules of fiber.data.convert with read(Request) -> RawDataset, SPLITS and sometimes VARIANTS and
OPTIONS. A new one is a new file there."""


def parser() -> argparse.ArgumentParser:
    """One sub-command a data set, so that every one shows and takes only its own options."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sets = top.add_subparsers(dest="dataset", metavar="DATASET", required=True)
    for name, module in DATASETS.items():
        summary = module.__doc__.strip().splitlines()[0]
        sub = sets.add_parser(name, help=summary, description=module.__doc__,
                              formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        _reading_options(sub, module)
        _writing_options(sub)
    return top


def _reading_options(sub: argparse.ArgumentParser, module: ModuleType) -> None:
    options = getattr(module, "OPTIONS", ("raw", "annotations", "images"))
    sub.add_argument("--split", default=module.SPLITS[0], help=f"one of {', '.join(module.SPLITS[:5])}")
    if "raw" in options:
        sub.add_argument("--raw", type=Path, required=True, help="folder with the files as downloaded")
    if "annotations" in options:
        sub.add_argument("--annotations", type=Path, help="annotation file, if not at its official place")
    if "images" in options:
        sub.add_argument("--images", type=Path, help="image folder, if not at its official place")
    if hasattr(module, "VARIANTS"):
        sub.add_argument("--variant", choices=module.VARIANTS, default=module.VARIANTS[0])
    if "answers" in options:
        sub.add_argument("--answers", type=Path, help="ready answer vocabulary: JSON list or a folder of VQA shards")
    if "config" in options:
        sub.add_argument("--config", type=Path, help="an ODinW YAML file; --raw is then the folder above odinw/")
    if "world" in options:
        sub.add_argument("--world", default="easy", help="easy, hard, novel, arranged or paired")
        sub.add_argument(
            "--captions",
            choices=("mixed", "full", "ordered"),
            default="mixed",
            help="full names every object, ordered also lists them from left to right or top to bottom",
        )
    if "image_size" in options:
        sub.add_argument("--image-size", type=int, help="pixels per side")
    if "seed" in options:
        sub.add_argument("--seed", type=int, default=0)


def _writing_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=Path, required=True, help="folder for the shards")
    sub.add_argument("--workers", type=int, default=1, help="processes; the bytes do not depend on it")
    sub.add_argument("--limit", type=int, help="only the first N items")
    sub.add_argument("--shard-samples", type=int, default=1000, help="items per shard at most")
    sub.add_argument("--shard-mb", type=float, default=256.0, help="target size of a shard")
    sub.add_argument("--max-side", type=int, help="shrink larger images to this long side (boxes follow)")
    sub.add_argument("--reencode", action="store_true", help="store every image as an RGB JPEG")
    sub.add_argument("--quality", type=int, default=92, help="of JPEGs written by --max-side and --reencode")
    sub.add_argument("--stored-boxes", action="store_true", help="boxes do not know of EXIF blocks that turn images")
    sub.add_argument("--no-decode-check", dest="decode_check", action="store_false", help="trust headers")
    sub.add_argument("--against", type=Path, nargs="+", default=[], metavar="EVAL", help="evaluation sets (shard "
                     "folders, or text files with an image id per line): report images they share")  # fmt: skip
    sub.add_argument("--drop-leaks", action="store_true", help="and leave those images out")
    sub.add_argument("--overwrite", action="store_true", help="replace what --out holds")


def main(arguments: list[str] | None = None) -> int:
    """Runs one conversion; the exit status."""
    options = parser().parse_args(arguments)
    given = vars(options)
    request = Request(**{key: given[key] for key in Request.__dataclass_fields__ if key in given})
    packing = Packing(options.decode_check, options.max_side, options.reencode, options.quality, options.stored_boxes)
    job = ConversionOptions(
        options.out, packing, options.shard_samples, options.shard_mb, options.limit, tuple(options.against),
        options.drop_leaks, workers=options.workers, overwrite=options.overwrite,
    )  # fmt: skip
    try:
        module = DATASETS[options.dataset]
        if options.split not in module.SPLITS:
            raise ConversionError(
                f"{options.dataset} has no split {options.split!r}; one of {', '.join(module.SPLITS)}"
            )
        source = _read(module, request, options.dataset)
        summary = convert(source, job)
    except (ConversionError, RecordError, ShardError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report(summary, source.notes)
    print(json.dumps(summary))
    return 0


def _read(module: ModuleType, request: Request, dataset: str) -> RawDataset:
    try:
        return module.read(request)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        if isinstance(error, ShardError):
            raise
        place, what = request.annotations or request.raw, f"{type(error).__name__}: {error}"
        raise ConversionError(f"{place}: not in the format of {dataset} ({what:.200})") from error


if __name__ == "__main__":
    sys.exit(main())
