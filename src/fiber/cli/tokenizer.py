"""`fiber tokenizer`: a small vocabulary from the texts of shards."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from fiber.cli.numbers import whole_number

DESCRIPTION = """Train a small byte-level BPE tokenizer on the texts of shards, for a model that starts from nothing.

    fiber tokenizer shards/train --out tokenizer

Real runs use `roberta-base`, or the tokenizer of the model that they start from. The folder works wherever a
tokenizer is asked for. The last line of stdout is a JSON summary.
"""
TEXT_FIELDS = ("captions", "expressions", "questions", "hypotheses", "statements")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("shards", nargs="+", type=Path, help="shard folders")
    parser.add_argument("--out", required=True, type=Path, help="folder for the tokenizer")
    parser.add_argument(
        "--vocab-size", type=whole_number(261, 1_000_000), default=400, help="ids at most (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Train it; -> exit status. Raises ShardError, ValueError."""
    from fiber.data.shapes.tokenizer import train_bpe

    tokenizer = train_bpe(texts(arguments.shards), arguments.vocab_size, arguments.out)
    print(json.dumps({"out": str(arguments.out), "vocabulary": len(tokenizer)}))
    return 0


def texts(folders: Sequence[Path]) -> Iterator[str]:
    """Every text of every record."""
    from fiber.countdown import Countdown
    from fiber.data import records
    from fiber.data.shards import ShardSet

    for folder in folders:
        shards = ShardSet(folder)
        for index in Countdown(f"reading {folder.name}", len(shards), "records").over(range(len(shards))):
            record = shards.read(index).record
            for field in TEXT_FIELDS:
                for number in range(records.count(record, field)):
                    yield records.annotation_text(record, field, number)
