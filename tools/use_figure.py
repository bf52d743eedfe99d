"""The figure of the README's commands on one's own images: ground, refer and detect by the demo's detector.

    python tools/use_figure.py runs/demo --out docs/figures/use.png

The last line of stdout is a JSON summary.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import fiber
from fiber.cli.on_images import drawing, plain
from fiber.images.draw import draw_text, tile
from fiber.predict.listing import ImageList

SENTENCE = "a large blue square right of a large orange triangle"
CLASSES = ["orange cross", "orange triangle", "green triangle", "yellow circle"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the folder that `make demo` fills")
    parser.add_argument("--out", type=Path, required=True, help="the image to write, .png")
    arguments = parser.parse_args()
    model = fiber.load(str(arguments.demo / "stage2"))
    two, four = (next(iter(ImageList([str(arguments.demo / "images" / name)]))) for name in ("5.png", "4.png"))
    asked = (
        (f"fiber ground --text “{SENTENCE}”", two, model.ground([two], SENTENCE)[0]),
        ("fiber refer --text “the triangle”", two, model.refer([two], "the triangle")[0]),
        (f"fiber detect --text “{', '.join(CLASSES)}”", four, model.detect([four], CLASSES)[0]),
    )
    cells = [draw_text(drawing({"regions": plain(found)}, file), command) for command, file, found in asked]
    tile(cells, len(cells)).save(arguments.out)
    print(json.dumps({"out": str(arguments.out), "images": len(cells)}))


if __name__ == "__main__":
    main()
