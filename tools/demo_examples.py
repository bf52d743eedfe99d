"""Run the README's examples on what `make demo` has left and compare their answers with the truth of the scenes.

    python tools/demo_examples.py runs/demo

Exit status: 0 all are right, 1 some are wrong, which are said.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import box_iou

from fiber.cli.main import main as fiber
from fiber.data.shards import ShardSet

REPO = Path(__file__).resolve().parents[1]
Record = dict[str, Any]
RELATION = re.compile(r"(?:there is )?an? (.*?) (?:is )?(left of|right of|above|below) an? (.*)")


def examples(page: str) -> list[list[str]]:
    """The words of every command of a page's bash blocks that uses a model of the demo."""
    lines = "".join(re.findall(r"^```bash\n(.*?)^```", page, re.M | re.S)).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("fiber ") and "--model runs/demo" in line]


def objects(record: Record) -> list[tuple[str, list[float]]]:
    """What is in a scene: "large blue square" and its box, as its first caption names them all."""
    caption = record["captions"][0]
    words = [caption["text"][slice(*phrase["span"][0])] for phrase in caption["phrases"]]
    boxes = [record["boxes"][phrase["boxes"][0]]["box"] for phrase in caption["phrases"]]
    return [(re.sub(r"^an? ", "", word), box) for word, box in zip(words, boxes, strict=True)]


def holds(record: Record, text: str) -> bool:
    """Whether a scene is as a text says: two objects, and how one lies to the other."""
    first, relation, second = RELATION.fullmatch(text).groups()  # type: ignore[union-attr]
    axis, sign = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}[relation]
    at = {name: (box[axis] + box[axis + 2]) / 2 for name, box in objects(record)}
    return {first, second} <= at.keys() and sign * (at[second] - at[first]) > 0


def same(box: list[float], other: list[float]) -> bool:
    """Whether a found box is the true one: IoU of 0.5 or more."""
    return bool(box_iou(torch.tensor([box]), torch.tensor([other])).item() >= 0.5)


def right(verb: str, result: dict[str, Any], record: Record) -> bool:
    """Whether what a verb says of an image is what its scene shows."""
    if verb == "match":
        return (result["probability"] > 0.5) == holds(record, result["text"])
    if verb == "retrieve":
        return holds(record, result["text"])
    regions = result["regions"]
    if verb == "refer":
        (box,) = {e["box"] for e in record["expressions"] if e["text"] == result["expression"]}
        return same(regions[0]["box"], record["boxes"][box]["box"])
    # Nothing is missed, and nothing else is found: detect leaves the size out.
    truth = [(name if verb == "ground" else name.partition(" ")[2], box) for name, box in objects(record)]
    pairs = [[label == region["label"] and same(region["box"], box) for label, box in truth] for region in regions]
    return len(regions) == len(truth) and all(sum(row) == 1 for row in [*pairs, *zip(*pairs, strict=True)])


def check(words: list[str], demo: Path, shards: ShardSet) -> bool:
    """Run one example; -> whether all of its answers are right."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        with contextlib.redirect_stderr(io.StringIO()) as said:
            here = [word.replace("runs/demo", str(demo)) for word in words]
            asked = here[: here.index("--out")] if "--out" in here else here  # drawings are for readers
            status = fiber([*asked, "--out", str(out)])
        if status != 0:
            print(said.getvalue(), file=sys.stderr)
            return False
        results = json.loads(out.read_text())
    named = [result["images"][0] if words[0] == "retrieve" else result for result in results]
    # images/N.png is scene N, NNNNNNNN-ID.png in a tar as well
    scenes = [int(Path(hit["image"]).stem.partition("-")[0]) for hit in named]
    return all(right(words[0], r, shards.read(i).record) for r, i in zip(results, scenes, strict=True))


def main() -> int:
    """Command line; -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("demo", type=Path, help="folder of the demo")
    demo = parser.parse_args().demo
    shards, asked = ShardSet(demo / "shards" / "test"), examples((REPO / "README.md").read_text())
    wrong = [words for words in asked if not check(words, demo, shards)]
    print(f"README examples checked: {len(asked) - len(wrong)} of {len(asked)} right")
    for words in wrong:
        print(f"  wrong: fiber {shlex.join(words)}")
    return min(len(wrong), 1)


if __name__ == "__main__":
    sys.exit(main())
