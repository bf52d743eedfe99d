"""`fiber convert`: weights to an export folder that `fiber.load` and the verbs read, and such a folder to a file."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from fiber.cli.numbers import whole_number

DESCRIPTION = """Turn weights into an export folder that every verb reads, or an export back into a file.

    fiber convert runs/coarse model                     a run's best checkpoint, or else its newest
    fiber convert fiber_pretrain.ckpt model             weights of the release
    fiber convert model model.pt2                       a torch.export program
    fiber convert model model.onnx                      an ONNX file (extra `onnx`)
    fiber convert model m.onnx --size 384x384 384x640   one per size: m-384x384.onnx, m-384x640.onnx

SRC                                          DST
official stage-1 .ckpt, stage-2 .pth/.pt     export folder
run directory of this project                export folder (of its best checkpoint, or else its newest)
export folder                                file ending in .ckpt, .pth or .pt: official names
export folder                                file ending in .pt2 or .onnx: a program (see --size)

The configuration is derived from the shapes in the file; what shapes do not tell is listed with its origin. Every
tensor is reported as used, unused or missing. Files are read without running code of theirs; a file that would is
refused.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("src", type=Path, metavar="SRC", help="what there is, as above")
    parser.add_argument(
        "dst", type=Path, metavar="DST", help="what it becomes: a new folder, or a file by its ending"
    )
    parser.add_argument("--tokenizer", default="roberta-base", help="of an official file (default: %(default)s)")
    parser.add_argument("--answers", type=Path, help="JSON list of the question head's answers, in class order")
    parser.add_argument("--categories", type=Path, help="JSON list of class names a detector was trained on")
    parser.add_argument("--weights", choices=("model", "model_ema"), default="model", help="of a stage-2 file")
    parser.add_argument(
        "--text-heads", type=whole_number(1), help="attention heads of the text tower, which shapes do not tell"
    )
    parser.add_argument(  # the two special tokens, and one between them
        "--max-text", type=whole_number(3), help="text length in tokens, which shapes do not tell"
    )
    parser.add_argument(
        "--image-size", type=whole_number(1, 65_536), help="side (stage 1) or short side (stage 2) in pixels"
    )
    parser.add_argument(
        "--size",
        type=size,
        nargs="+",
        metavar="HxW",
        help="of a program's images in pixels; of several, a file each",
    )


def size(text: str) -> tuple[int, int]:
    """(height, width) px from "HxW"."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is no HEIGHTxWIDTH in pixels, such as 384x640")
    return int(height), int(width)


def run(arguments: argparse.Namespace) -> int:
    """Convert; -> exit status. Raises WeightsError, ConfigError, ValueError."""
    from fiber.cli.convert_release import convert_back, convert_official

    if (arguments.src / "config.yaml").is_file():
        convert_run(arguments)
    elif arguments.src.is_dir():
        convert_back(arguments)
    else:
        convert_official(arguments)
    return 0


def convert_run(arguments: argparse.Namespace) -> None:
    """The best checkpoint of a run directory of either stage, or else the newest, to an export folder: what training
    exports at its end, by the same functions. Raises ConfigError, WeightsError."""
    from fiber.cli.config import kind_of
    from fiber.cli.convert_release import names_of, report
    from fiber.config.loading import load_config, read_tree
    from fiber.errors import WeightsError
    from fiber.tasks.table import task_of
    from fiber.training.checkpoint import Checkpoints
    from fiber.training.run import open_tokenizer
    from fiber.weights.export import write_run_export

    file = arguments.src / "config.yaml"
    config = load_config(kind_of(read_tree(file), file), file, [f"output={arguments.src}"], lenient=True)
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
    step, figures = evaluation_of(checkpoint)
    write_run_export(config, export, figures, row.headline, step, arguments.dst)
    print(f"wrote {arguments.dst} from {checkpoint}")


def evaluation_of(checkpoint: Path) -> tuple[int, dict[str, float]]:
    """The step of a checkpoint, and the figures of its evaluation; none where it was not evaluated. Raises
    WeightsError."""
    from fiber.weights.tensors import refusing

    with refusing(checkpoint, "has a damaged state.json or evaluated.json"):
        state = json.loads((checkpoint / "state.json").read_text())
        late = checkpoint / "evaluated.json"  # what was evaluated after the checkpoint had been saved
        record = json.loads(late.read_text()) if late.exists() else state.get("state", {}).get("record", {})
        step = int(state["step"])
        return step, dict(record["newest"]) if record.get("evaluated") == step else {}
