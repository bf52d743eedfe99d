"""One check of the project on a machine with one card: right first, then fast.

    python tools/gpu_check.py [--json OUT] [--minutes 9] [--only stage1,stage2] [--dry]

Sections in order of value, each a process with a time limit of its own, so that a crash or a hang costs one of them;
what does not fit into `--minutes` is left out. OUT (default gpu_check.json) is one JSON, written after every section.
`--dry` runs every section on the CPU with tiny sizes, one after the other in this process. Exit status: 0, or 1 where
a section failed.

machine   the card, and what its memory and its products reach
equal     losses and gradients of both stages on the card against the CPU, by precision
attention a window's attention, forward and backward, in each form
stage1    a pre-training step of FIBER-B at 384 px by micro-batch: pairs/s, share of the peak, memory
stage2    a step at 800 px by micro-batch and precision, and what a new size costs
train     the launcher: losses over 100 steps in fp32, bf16 and fp16 (stage 2)
evaluate  re-ranking, captions and 1,203 classes, in fp32 and bf16
parity    the recorded tensors of the release, computed on the card
compile   a stage-1 step with compiled blocks
loader    images/s of the loader
"""

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import gpu_check_sections as sections
from fiber.cli.numbers import real_number

LIMITS: dict[str, tuple[Callable[[bool], dict], int]] = {  # seconds at most
    "machine": (sections.machine, 40),
    "equal": (sections.equal, 60),
    "attention": (sections.attention, 40),
    "stage1": (sections.stage1, 100),
    "stage2": (sections.stage2, 100),
    "train": (sections.train, 150),
    "evaluate": (sections.evaluate, 70),
    "parity": (sections.parity, 40),
    "compile": (sections.compiled, 100),
    "loader": (sections.loader, 40),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), metavar="OUT")
    parser.add_argument("--minutes", type=real_number(above=0), default=9)
    parser.add_argument("--only", default="", metavar="SECTION,...")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--section", choices=LIMITS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.section:
        print(json.dumps(measured(arguments.section, arguments.dry)))
        return 0
    end, results = time.monotonic() + 60 * arguments.minutes, {}
    for name in arguments.only.split(",") if arguments.only else LIMITS:
        start = time.monotonic()
        results[name] = measured(name, True) if arguments.dry else apart(name, end - start)
        results[name]["seconds_of_section"] = round(time.monotonic() - start, 1)
        arguments.json.write_text(json.dumps(results, indent=1))
        print(name, json.dumps(results[name])[:1000], flush=True)
    return int(any("error" in found for found in results.values()))


def measured(name: str, dry: bool) -> dict:
    """What a section finds, or its error."""
    try:
        return LIMITS[name][0](dry)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:600], "where": traceback.format_exc()[-1500:]}


def apart(name: str, left: float) -> dict:
    """`measured` in a process of its own, for its limit or the seconds left."""
    if left < 15:
        return {"skipped": "no time left"}
    command = [sys.executable, __file__, "--section", name]
    try:
        done = subprocess.run(command, timeout=min(LIMITS[name][1], left), stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        return {"error": f"no result: {type(error).__name__}"}


if __name__ == "__main__":
    raise SystemExit(main())
