"""Cut a few-shot subset out of the shards of a detection set: K images of every class, more where others are rarer.

    python tools/few_shot.py SHARDS --shots K --out DIR [--seed S]

Writes ordinary shards, whose dataset.json says what they were cut from. SHARDS is the training split: what a model is
chosen by or tested on stays whole. The last line of stdout is a JSON summary.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from few_shot_sets import write_few_shot
from fiber.cli.numbers import whole_number
from fiber.errors import ShardError


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="shards with labelled boxes")
    parser.add_argument("--shots", type=whole_number(1), required=True, help="images per class")
    parser.add_argument("--seed", type=whole_number(0, 2**64 - 1), default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the subset")
    arguments = parser.parse_args(argv)
    try:
        info = write_few_shot(arguments.shards, arguments.out, arguments.shots, arguments.seed)
    except ShardError as error:
        parser.exit(1, f"error: {error}\n")
    few = [name for name, count in info["images"].items() if count < arguments.shots]
    if few:
        print(f"with fewer than {arguments.shots} images, all there are: {', '.join(few)}")
    print(json.dumps({"out": str(arguments.out), "samples": info["samples"], "images": info["images"]}))


if __name__ == "__main__":
    main()
