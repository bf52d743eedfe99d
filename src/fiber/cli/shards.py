"""`fiber shards`: a data set, or a folder of one's own, becomes shards that both stages read."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fiber.cli.numbers import real_number, whole_number

if TYPE_CHECKING:
    from fiber.data.convert.items import RawDataset, Request

DESCRIPTION = """Turn images and annotations into clean, indexed WebDataset shards that both stages read:

    fiber shards boxes MY_FOLDER --out data/mine --val-share 0.2     COCO, VOC, YOLO, ..., tables: guessed
    fiber shards pairs MY_FOLDER --out data/mine                     images with texts, in any usual form
    fiber shards coco_captions --raw DIR --split train --out DIR     a set as its authors publish it

Run the same command again after an interruption: it goes on and ends with the same bytes. What was left out, and why,
is in OUT/drops.jsonl. docs/data.md says for every DATASET where to get it and which folder is expected. The last line
of stdout is a JSON summary. Exit status: 0 done, 1 a clear error, 2 wrong usage.
"""
_READERS = Path(__file__).parents[1] / "data" / "convert"


def names() -> dict[str, str]:
    """Name of every DATASET and its line of help: the modules of fiber.data.convert with SPLITS and
    read(Request) -> RawDataset, and sometimes VARIANTS, OPTIONS and splits(Request). None is imported."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_READERS.glob("*.py"))}
    return {name: text.partition("\n")[0].strip('"') for name, text in texts.items() if "\nSPLITS = " in text}


def reader(name: str) -> ModuleType:
    """The module that reads a DATASET."""
    return importlib.import_module(f"fiber.data.convert.{name}")


def arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-command a data set, so that every one shows and takes only its own options."""
    sets = parser.add_subparsers(dest="dataset", metavar="DATASET", required=True, parser_class=_SetParser)
    for name, summary in names().items():
        sets.add_parser(name, help=summary, dataset=name)


class _SetParser(argparse.ArgumentParser):
    """The options of one data set. Its module is imported when it is chosen: `fiber shards --help` imports none."""

    def __init__(self, *, dataset: str, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.dataset: str | None = dataset

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.dataset is not None:
            module, self.dataset = reader(self.dataset), None
            self.description = module.__doc__
            _reading_options(self, module)
            _writing_options(self)
        return super().parse_known_args(args, namespace)


def _reading_options(sub: argparse.ArgumentParser, module: ModuleType) -> None:
    options = getattr(module, "OPTIONS", ("raw", "annotations", "images"))
    several = hasattr(module, "splits")
    if several:
        sub.add_argument("source", nargs="?", type=Path, metavar="SRC", help="a folder, or the file of texts: one "
                         "set for each split that it has, in OUT/train, OUT/val, OUT/test")  # fmt: skip
        sub.add_argument("--val-share", type=real_number(above=0, below=1), metavar="SHARE", help="take this share "
                         "of the training images as OUT/val, e.g. 0.2")  # fmt: skip
    sub.add_argument("--split", default=None if several else module.SPLITS[0],
                     help=f"one of {', '.join(module.SPLITS[:5])}"
                     + ("; only that one, straight into OUT" if several else ""))  # fmt: skip
    if "raw" in options:
        text = "as SRC, but a single split, straight into OUT" if several else "folder with the files as downloaded"
        sub.add_argument("--raw", type=Path, required=not several, help=text)
    if "annotations" in options:
        sub.add_argument("--annotations", type=Path, help="annotation file, if not at its official place")
    if "images" in options:
        sub.add_argument("--images", type=Path, help="image folder, if not at its official place")
    if hasattr(module, "VARIANTS"):
        sub.add_argument("--variant", choices=module.VARIANTS, default=module.VARIANTS[0])
    if "format" in options:
        sub.add_argument("--format", choices=module.FORMATS, help="instead of guessing it")
    for flag, (kind, text) in _EXTRA.items():
        if flag[2:].replace("-", "_") in options:
            sub.add_argument(flag, type=kind, help=text)
    if "in_place" in options:
        sub.add_argument("--in-place", action="store_true", help="use WebDataset tars as they lie: only an index and "
                         "the texts are written to OUT")  # fmt: skip
    if "world" in options:
        sub.add_argument("--world", default="easy", help="easy, hard, novel, arranged or paired")
        sub.add_argument("--captions", choices=("mixed", "full", "ordered"), default="mixed", help="full names every "
                         "object, ordered also lists them from left to right or top to bottom")  # fmt: skip
    if "image_size" in options:
        sub.add_argument("--image-size", type=whole_number(32, 65_536), help="pixels per side")
    if "seed" in options or several:
        sub.add_argument("--seed", type=whole_number(0, 2**64 - 1), default=0, help="of what is drawn at random "
                         "(default: 0)")  # fmt: skip


_EXTRA: dict[str, tuple[type, str]] = {
    "--answers": (Path, "ready answer vocabulary: JSON list or a folder of VQA shards"),
    "--config": (Path, "an ODinW YAML file; --raw is then the folder above odinw/"),
    "--classes": (Path, "text file of class names: one per line in the order of their ids, or lines `old = new`"),
    "--image-column": (str, "column or key of the image: a path, a URL, or the bytes (base64 in text files)"),
    "--text-column": (str, "column or key of the text or the texts"),
    "--image-key": (str, "how the names of images end in the tars, e.g. input.jpg"),
    "--text-key": (str, "how the names of texts end in the tars, e.g. txt, or json:caption for a key of a JSON file"),
}


def _writing_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=Path, required=True, help="folder for the shards")
    sub.add_argument(
        "--workers", type=whole_number(1, 1024), default=1, help="processes; the bytes do not depend on it"
    )
    sub.add_argument("--limit", type=whole_number(1), help="only the first N items")
    sub.add_argument("--shard-samples", type=whole_number(1), default=1000, help="items per shard at most")
    sub.add_argument(
        "--shard-mb", type=real_number(above=0, most=1_000_000), default=256.0, help="target size of a shard"
    )
    sub.add_argument("--max-side", type=whole_number(1), help="shrink larger images to this long side (boxes follow)")
    sub.add_argument("--reencode", action="store_true", help="store every image as an RGB JPEG")
    sub.add_argument(
        "--quality", type=whole_number(1, 100), default=92, help="of JPEGs written by --max-side and --reencode"
    )
    sub.add_argument("--stored-boxes", action="store_true", help="boxes do not know of EXIF blocks that turn images")
    sub.add_argument("--no-decode-check", dest="decode_check", action="store_false", help="trust headers")
    sub.add_argument("--against", type=Path, nargs="+", default=[], metavar="EVAL", help="evaluation sets (shard "
                     "folders, or text files with an image id per line): report images they share")  # fmt: skip
    sub.add_argument("--drop-leaks", action="store_true", help="and leave those images out")
    sub.add_argument("--overwrite", action="store_true", help="replace what --out holds")


def run(options: argparse.Namespace) -> int:
    """Every set that is asked for; -> exit status. Raises ConversionError, ShardError, OSError."""
    from fiber.data.convert.engine import convert
    from fiber.data.convert.in_place import index_tars
    from fiber.data.convert.items import ConversionError
    from fiber.data.convert.out_folder import check_sources, other_splits, remove
    from fiber.data.convert.verdict import report
    from fiber.data.records import RecordError

    summaries = {}
    several = getattr(options, "source", None) is not None and options.split is None
    try:
        sources = _sources(options)
        if not getattr(options, "in_place", False):
            check_sources(sources.values())
        left = other_splits(options.out, sources, options.overwrite) if several else []
        for split, (source, out) in sources.items():
            if getattr(options, "in_place", False):
                summaries[split] = index_tars(source, out, options.decode_check, options.overwrite)
            else:
                summaries[split] = convert(source, _job(options, out))
            report(summaries[split], source.notes)
            if "already_complete" in summaries[split]:
                print("  already complete: nothing was read again; --overwrite makes it again")
        for folder in left:
            remove(folder)
    except RecordError as error:
        raise ConversionError(str(error)) from None
    print(json.dumps({"out": str(options.out), "splits": summaries} if several else summaries.popitem()[1]))
    return 0


def _job(options: argparse.Namespace, out: Path) -> Any:
    from fiber.data.convert.engine import ConversionOptions
    from fiber.data.convert.packing import Packing

    packing = Packing(options.decode_check, options.max_side, options.reencode, options.quality, options.stored_boxes)
    return ConversionOptions(
        out, packing, options.shard_samples, options.shard_mb, options.limit, tuple(options.against),
        options.drop_leaks, workers=options.workers, overwrite=options.overwrite,
    )  # fmt: skip


def _sources(options: argparse.Namespace) -> dict[str, tuple[RawDataset, Path]]:
    """split -> (what is read, where it goes)."""
    from fiber.data.convert.items import ConversionError, Request
    from fiber.data.convert.val_share import divide

    module = reader(options.dataset)
    if getattr(options, "in_place", False):
        refused = {"--limit": options.limit, "--max-side": options.max_side, "--reencode": options.reencode,
                   "--against": options.against}  # fmt: skip
        if other := next((name for name, value in refused.items() if value), None):
            raise ConversionError(f"{other} packs images again; leave out --in-place")
    given = {key: value for key, value in vars(options).items() if key in Request.__dataclass_fields__}
    source = getattr(options, "source", None)
    if source is not None and options.raw is not None:
        raise ConversionError("give the folder once: SRC or --raw")
    if hasattr(module, "splits") and source is None and options.raw is None:
        raise ConversionError(f"fiber shards {options.dataset} FOLDER --out OUT: the folder is missing")
    given |= {"raw": source or given.get("raw") or Path(), "split": _split(options.split, module.SPLITS)}
    if given["split"] not in module.SPLITS:
        raise ConversionError(f"{options.dataset} has no split {options.split!r}; one of {', '.join(module.SPLITS)}")

    def read(split: str) -> RawDataset:
        return _read(module, Request(**{**given, "split": split}), options.dataset)

    share = getattr(options, "val_share", None)
    if source is None or options.split is not None:
        if share is not None:
            raise ConversionError("--val-share makes OUT/train and OUT/val: give the folder as SRC, without --split")
        return {given["split"]: (read(given["split"]), options.out)}
    said, found = _found(module, Request(**given), options.dataset)
    print(said)
    if share is None:
        return {split: (read(split), options.out / split) for split in found}
    if "train" not in found or "val" in found:
        raise ConversionError(f"--val-share divides the training images where there is no val: {said}")
    divided = divide(lambda: read("train"), share, options.seed)
    rest = {split: read(split) for split in found if split != "train"}
    return {split: (part, options.out / split) for split, part in {**divided, **rest}.items()}


def _split(asked: str | None, there: Sequence[str]) -> str:
    """The split that is asked for: by its name, or by another word for the one split that it can be (valid, dev)."""
    from fiber.data.convert.splits import NAMES, split_of

    if asked is None or asked in there:
        return asked or there[0]
    word = asked.lower()
    meant = [name for name in there if word in NAMES.get(split_of(name) or "", ())]
    return meant[0] if len(meant) == 1 else asked


def _read(module: ModuleType, request: Request, dataset: str) -> RawDataset:
    source = _guarded(lambda: module.read(request), request, dataset)
    named = (request.raw, request.annotations, request.classes, request.config, request.answers)
    source.reads = itertools.chain(source.reads, (path for path in named if path is not None and path.is_file()))
    return source


def _found(module: ModuleType, request: Request, dataset: str) -> tuple[str, list[str]]:
    return _guarded(lambda: module.splits(request), request, dataset)


def _guarded(call: Any, request: Request, dataset: str) -> Any:
    """What a reader returns; a file that is not what it should be becomes one clear error."""
    from fiber.data.convert.items import ConversionError
    from fiber.errors import ShardError

    try:
        return call()
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        if isinstance(error, ShardError):
            raise
        place, what = request.annotations or request.raw, f"{type(error).__name__}: {error}"
        raise ConversionError(f"{place}: not in the format of {dataset} ({what:.200})") from error
