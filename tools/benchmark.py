"""Measure the project on this machine.

    python tools/benchmark.py COMMAND --config FILE [--json OUT] [key=value ...]

    step     a pre-training step with shared prefixes and the same step in five full passes; of a stage-2
             configuration its one form
    loader   the stage-1 loader, beside decoding and resizing alone on the same cores
    index    opening a set of `bench.index_samples` samples on two ranks: time and memory
    rerank   matching of pairs with cached prefixes and with full forwards
    rank     the best candidates of every image and every text of a gallery: time and memory
    caption  decoding with five beams, cached and with the whole prefix computed at every step
    detect   1,203 classes in prompts of 40, prefixes shared and the whole model run again for each
    embed    features of a folder's images as `fiber embed` makes them, beside decoding and forward pass alone
    pairs    packing and listing one's own data, without a configuration: benchmark.py pairs --rows 1000000

FILE is a stage-1 configuration, for `detect` a stage-2 one, for `step` either; for `embed` it has the keys `model`
and `images` (benchmark_embed.EmbedBenchConfig); `bench.KEY=value` sets an option of
the measurement (benchmark_common.BenchOptions). Every time is the median of `bench.repeats` after a warm-up. A table
goes to stderr; the last line of stdout is a JSON summary, also written to OUT. Exit status: 0 done, 2 a bad
configuration.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import benchmark_caption
import benchmark_detect
import benchmark_embed
import benchmark_fine_step
import benchmark_index
import benchmark_loader
import benchmark_pairs
import benchmark_rank
import benchmark_rerank
import benchmark_step
from benchmark_common import BenchConfig, machine
from fiber.config.loading import load_config
from fiber.errors import ConfigError

COMMANDS = {
    "step": (BenchConfig, benchmark_step.run),
    "loader": (BenchConfig, benchmark_loader.run),
    "index": (BenchConfig, benchmark_index.run),
    "rerank": (BenchConfig, benchmark_rerank.run),
    "rank": (BenchConfig, benchmark_rank.run),
    "caption": (BenchConfig, benchmark_caption.run),
    "detect": (benchmark_detect.DetectBenchConfig, benchmark_detect.run),
    "embed": (benchmark_embed.EmbedBenchConfig, benchmark_embed.run),
}
FINE_STEP = (benchmark_detect.DetectBenchConfig, benchmark_fine_step.run)


def main(argv: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["pairs"]:
        benchmark_pairs.main(given[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(given)
    schema, run = COMMANDS[arguments.command]
    if arguments.command == "step" and is_fine(arguments.config):
        schema, run = FINE_STEP
    try:
        config = load_config(schema, arguments.config, arguments.overrides)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    found = {"command": arguments.command, "config": arguments.config, "overrides": arguments.overrides}
    found |= {"machine": machine(), "results": run(config)}
    for name, value in flat(found["results"]):
        print(f"{name:<44} {value:>14,.4g}", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def is_fine(path: str) -> bool:
    """Whether a configuration is one of stage 2, which alone has a detector."""
    file = Path(path)
    return file.is_file() and any(line.startswith("detector:") for line in file.read_text().splitlines())


def flat(tree: dict, prefix: str = "") -> list[tuple[str, float]]:
    """Numbers of nested dicts with their paths."""
    rows = []
    for name, value in tree.items():
        rows += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


if __name__ == "__main__":
    main()
