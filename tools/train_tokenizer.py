"""Train a small byte-level BPE tokenizer on the texts of shard folders.

    python tools/train_tokenizer.py SHARDS [SHARDS ...] --out DIR [--vocab-size N]

For worlds whose language is tiny; real runs use `roberta-base`. The folder works wherever a tokenizer is asked for.
The last line of stdout is a JSON summary.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from fiber.data import records
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shards import ShardSet
from fiber.errors import ShardError

TEXT_FIELDS = ("captions", "expressions", "questions", "hypotheses", "statements")


def texts(folders: list[Path]) -> Iterator[str]:
    """Every text of every record."""
    for folder in folders:
        shards = ShardSet(folder)
        for index in tqdm(range(len(shards)), desc=f"reading {folder.name}"):
            record = shards.read(index).record
            for field in TEXT_FIELDS:
                for number in range(records.count(record, field)):
                    yield records.annotation_text(record, field, number)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="\n".join(__doc__.split("\n")[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shards", nargs="+", type=Path, help="shard folders")
    parser.add_argument("--out", required=True, type=Path, help="folder for the tokenizer")
    parser.add_argument("--vocab-size", type=int, default=400, help="ids at most")
    arguments = parser.parse_args()
    try:
        tokenizer = train_bpe(texts(arguments.shards), arguments.vocab_size, arguments.out)
    except (ShardError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    print(json.dumps({"out": str(arguments.out), "vocabulary": len(tokenizer)}))


if __name__ == "__main__":
    main()
