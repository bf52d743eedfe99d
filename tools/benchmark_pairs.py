"""Packing one's own pairs at scale: python tools/benchmark.py pairs [--rows N] [--workers N] [--folder DIR]

Writes a CSV of N rows, a tiny JPEG (base64) and a caption each, and packs it; makes a folder of N files, lists it and
looks a name up in it. Rates and the peak memory of the process that does it (resident set) are printed, once for a
tenth of the rows and once for all: memory is flat where the second is about the first.
"""

import argparse
import base64
import csv
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fiber.cli.numbers import whole_number

SIDE = 16  # pixels


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py pairs", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    # A tenth of them has a second file, which is looked up.
    parser.add_argument("--rows", type=whole_number(20), default=100_000)
    parser.add_argument("--workers", type=whole_number(1, 1024), default=1)
    parser.add_argument("--folder", type=Path, help="where the files are written, and removed again")
    arguments = parser.parse_args(argv)
    results: dict[str, Any] = {"rows": arguments.rows, "workers": arguments.workers}
    for name, rows in (("tenth", max(arguments.rows // 10, 1)), ("all", arguments.rows)):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            write_table(Path(folder) / "pairs.csv", rows)
            results[name] = apart("pack", Path(folder), rows, arguments.workers)
            write_files(Path(folder) / "listed", rows)
            results[name]["listing"] = apart("listing", Path(folder) / "listed", rows)
            print(f"{rows:,} rows: {results[name]}", file=sys.stderr)
    print(json.dumps({"command": "pairs", "results": results}))


def write_table(path: Path, rows: int) -> None:
    """A CSV (image, caption) whose images are 16 x 16 JPEGs of one colour each, 4,096 of them."""
    images = []
    for number in range(min(rows, 4096)):
        out = io.BytesIO()
        colour = (number % 16 * 16, number // 16 % 16 * 16, number // 256 * 16)
        Image.new("RGB", (SIDE, SIDE), colour).save(out, "JPEG", quality=40)
        images.append(base64.b64encode(out.getvalue()).decode())
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        table.writerows((images[i % len(images)], f"image {i}, of a single colour") for i in range(rows))


def write_files(folder: Path, rows: int) -> None:
    """Empty files of one folder, called like images."""
    folder.mkdir()
    for number in range(rows):
        (folder / f"{number:09d}.jpg").touch()


def pack(folder: Path, rows: int, workers: int) -> dict[str, Any]:
    """The CSV becomes shards."""
    from fiber.cli.main import main as fiber

    began = time.perf_counter()
    command = ["shards", "pairs", str(folder / "pairs.csv"), "--out", str(folder / "out"), "--workers", str(workers)]
    if fiber([*command, "--shard-samples", "10000"]) != 0:
        raise RuntimeError("the packing failed")
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 1), "pairs_per_second": round(rows / seconds, 1)}


def listing(folder: Path, rows: int) -> dict[str, Any]:
    """The folder is walked as the readers walk it, and looked up in as annotation files need it."""
    from fiber.data.convert.image_folder import ImageFolder, is_image
    from fiber.data.convert.splits import files

    began = time.perf_counter()
    deque(files(folder, is_image), maxlen=0)
    walked = time.perf_counter()
    found = ImageFolder([folder]).find("x/000000001.JPG").paths[0]
    if not found.endswith("000000001.jpg"):
        raise RuntimeError(f"{found}: not the file looked for")
    looked = time.perf_counter()
    return {"files_per_second": round(rows / (walked - began)), "look_up_seconds": round(looked - walked, 1)}


def apart(measured: str, folder: Path, *numbers: int) -> dict[str, Any]:
    """A measurement by name in a process of its own, which imports nothing else, with its peak memory."""
    call = f"import benchmark_pairs as b; b.measure(b.{measured}, {str(folder)!r}, *{numbers})"
    command = [sys.executable, "-c", call]
    done = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(measured: Callable[..., dict[str, Any]], folder: str, *numbers: int) -> None:
    """Prints what a measurement found, as JSON."""
    found = measured(Path(folder), *numbers)
    status = Path("/proc/self/status").read_text()  # getrusage has the peak of the process that started this one
    print(json.dumps({**found, "peak_mb": round(int(status.partition("VmHWM:")[2].split()[0]) / 1024)}))
