"""Turn weights into an export folder that `fiber.load` and the `fiber` command read, or an export back into a file of
the release's form.

    python tools/convert_checkpoint.py SRC DST [--tokenizer FOLDER_OR_HUB_ID] [--answers FILE] [...]

SRC                                          DST
official stage-1 .ckpt, stage-2 .pth/.pt     export folder
run directory of this project                export folder (of its best checkpoint, or else its newest)
export folder                                file ending in .ckpt, .pth or .pt: official names
export folder                                file ending in .pt2: a torch.export program (see --size, --text-length)

The configuration is derived from the shapes in the file; what shapes do not tell is listed with its origin. Every
tensor is reported as used, unused or missing. Files are read without running code of theirs; a file that would is
refused. Exit status: 0 done, 1 a clear error, 2 wrong usage.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from convert_release import convert_back, convert_official, names_of, report
from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config
from fiber.errors import ConfigError, WeightsError
from fiber.tasks.table import task_of
from fiber.training.checkpoint import Checkpoints
from fiber.training.run import open_tokenizer
from fiber.weights.export import Card


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("src", type=Path)
    top.add_argument("dst", type=Path)
    top.add_argument("--tokenizer", default="roberta-base", help="of an official file (default: %(default)s)")
    top.add_argument("--answers", type=Path, help="JSON list of the question head's answers, in class order")
    top.add_argument("--categories", type=Path, help="JSON list of class names a detector was trained on")
    top.add_argument("--weights", choices=("model", "model_ema"), default="model", help="of a stage-2 file")
    top.add_argument("--text-heads", type=int, help="attention heads of the text tower, which shapes do not tell")
    top.add_argument("--max-text", type=int, help="text length in tokens, which shapes do not tell")
    top.add_argument("--image-size", type=int, help="side (stage 1) or short side (stage 2) in pixels")
    top.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of a program's images, in pixels")
    top.add_argument("--text-length", type=int, help="of a program's texts, in tokens")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run the command; -> exit status."""
    arguments = parser().parse_args(argv)
    try:
        if (arguments.src / "config.yaml").is_file():
            convert_run(arguments)
        elif arguments.src.is_dir():
            convert_back(arguments)
        else:
            convert_official(arguments)
    except (WeightsError, ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def convert_run(arguments: argparse.Namespace) -> None:
    """The best checkpoint of a run directory of either stage, or else the newest, to an export folder: what training
    exports at its end, by the same function."""
    file = arguments.src / "config.yaml"
    fine = "detector:" in file.read_text().splitlines()
    config = load_config(Stage2Config if fine else Stage1Config, file, [f"output={arguments.src}"], lenient=True)
    checkpoints = Checkpoints(arguments.src, config.train.keep)
    checkpoint = checkpoints.best() or checkpoints.latest()
    if checkpoint is None:
        raise WeightsError(f"{arguments.src} has no whole checkpoint")
    row, tokenizer, weights = task_of(config), open_tokenizer(config), checkpoints.weights(checkpoint)
    module = row.build_module(config, tokenizer)
    export = row.export(config, tokenizer, module, weights)
    answers, categories = names_of(arguments.answers), names_of(arguments.categories)
    export = replace(export, answers=answers or export.answers, categories=categories or export.categories)
    report(export, sorted(name for name in weights if not name.startswith("model.")))
    steps = json.loads((checkpoint / "state.json").read_text())["step"]
    card = Card([Path(source.path).name for source in config.data.train], steps)
    export.write(arguments.dst, card)
    print(f"wrote {arguments.dst} from {checkpoint}")


if __name__ == "__main__":
    sys.exit(main())
