"""What `fiber convert` does with files of the release, and what all its conversions share."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from fiber.data.text import load_tokenizer
from fiber.errors import WeightsError
from fiber.weights.card import Card
from fiber.weights.export import Export, read_export
from fiber.weights.export_config import CONFIG
from fiber.weights.from_export import build
from fiber.weights.official_file import convert, derive, read_official, write_official
from fiber.weights.tensors import refusing

OFFICIAL = (".ckpt", ".pth", ".pt")
PROGRAMS = {".pt2": "write_program", ".onnx": "export_onnx"}


def convert_official(arguments: argparse.Namespace) -> None:
    """An official checkpoint to an export folder."""
    file = read_official(arguments.src, arguments.weights)
    tokenizer = load_tokenizer(arguments.tokenizer)
    with refusing(arguments.src, "cannot be converted"):
        facts = derive(
            file,
            tokenizer.pad_token_id,
            text_heads=arguments.text_heads,
            max_text=arguments.max_text,
            image_size=arguments.image_size,
        )
        tensors, rest = convert(file, facts.config)
    print(f"stage: {facts.config.stage}\nnot told by shapes:")
    print("\n".join(f"  {origin}" for origin in facts.origins))
    answers, categories = names_of(arguments.answers), names_of(arguments.categories)
    questions = facts.config.classifiers.get("vqa")
    if answers and len(answers) != questions:
        raise WeightsError(f"{len(answers)} answers for a question head of {questions} classes")
    export = Export(facts.config, tensors, tokenizer, answers, categories, rest)
    with refusing(arguments.src, "cannot be converted"):
        report(export, file.dropped)
    card = Card(notes=[f"converted from the released form ({arguments.src.name})", *facts.origins])
    export.write(arguments.dst, card)
    if "vqa" in facts.config.classifiers and not answers:
        print("note: the file has a question head but no answer vocabulary; give --answers FILE to use it")
    print(f"wrote {arguments.dst}")


def convert_back(arguments: argparse.Namespace) -> None:
    """An export folder to a file of the release's form or to a program."""
    export, target = read_export(arguments.src), arguments.dst
    if target.suffix not in (*PROGRAMS, *OFFICIAL):
        raise WeightsError(
            f"{arguments.src} is an export already ({CONFIG}); give a target ending in {', '.join(OFFICIAL)} for an "
            f"official file or in {' or '.join(PROGRAMS)} for a program"
        )
    with refusing(arguments.src, "cannot be converted"):
        if target.suffix in PROGRAMS:
            write_programs(export, target, arguments.size or [None])
            return
        names = write_official(target, export)
    print(f"wrote {target}: {len(names)} tensors under official names")
    if not export.extras:
        print("note: this export does not come from the release, so tensors that only the release has are not there")


def write_programs(export: Export, target: Path, sizes: Sequence[tuple[int, int] | None]) -> None:
    """A program per size (height, width) px of the images; of several, each with its size in its name."""
    from fiber.weights import program

    write = getattr(program, PROGRAMS[target.suffix])
    for size in sizes:
        file = target.with_stem(f"{target.stem}-{size[0]}x{size[1]}") if size and len(sizes) > 1 else target
        print(f"wrote {file}: largest difference from the model {write(export, file, size):.1e}")


def report(export: Export, dropped: list[str]) -> None:
    """What becomes of every tensor, and a check that the model can be built of them."""
    _, loaded = build(export, as_start=True)
    loaded.unused = sorted({*loaded.unused, *export.extras})
    print(loaded.table(every=True))
    print(f"{'dropped':8} {len(dropped):5} tensors (training state)" + "".join(f"\n{'':15}{n}" for n in dropped))


def names_of(path: Path | None) -> list[str]:
    """Answers or class names from a JSON list or a dataset.json; none without a path. Raises WeightsError."""
    if path is None:
        return []
    try:
        value = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise WeightsError(f"{path}: {error}") from None
    if isinstance(value, dict):  # dataset.json of shards holds both lists
        value = value.get("answers") or [category["name"] for category in value.get("categories", [])]
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise WeightsError(f"{path} is not a JSON list of strings")
    return value
