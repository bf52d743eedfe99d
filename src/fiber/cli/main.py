"""The `fiber` command: one verb, one thin module, imported only when it is asked for.

`VERBS` lists the verbs; `fiber.cli.VERB` has a DESCRIPTION, `arguments(parser)` and `run(arguments) -> exit status`.
Neither this module nor the top of a verb's module imports anything heavy, so that help and wrong usage are instant.
Exit status: 0 done, 1 a clear error, 2 wrong usage.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from fiber.errors import KnownError


@dataclass(frozen=True)
class Verb:
    """`fiber NAME`: under which heading `fiber --help` shows it, and its line there."""

    name: str
    group: str
    help: str


VERBS = (
    Verb("caption", "a trained model on your own images", "describe images"),
    Verb("answer", "a trained model on your own images", "answer a question about them"),
    Verb("match", "a trained model on your own images", "how well a text fits"),
    Verb(
        "retrieve", "a trained model on your own images", "the images that fit a text best, or the texts for an image"
    ),
    Verb("ground", "a trained model on your own images", "a region for each phrase of a sentence"),
    Verb("refer", "a trained model on your own images", "the one region that an expression means"),
    Verb("report", "training and evaluation", "a page of a run: figures, curves, its worst images"),
    Verb("detect", "a trained model on your own images", "objects of the named classes"),
)


def module(verb: str) -> ModuleType:
    """The module of a verb."""
    return importlib.import_module(f"fiber.cli.{verb}")


def overview() -> str:
    """What `fiber --help` shows of the verbs, by group."""
    lines = []
    for group in dict.fromkeys(verb.group for verb in VERBS):
        lines += [f"{group}:", *(f"  {verb.name:10} {verb.help}" for verb in VERBS if verb.group == group), ""]
    return "\n".join(lines)


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole command line; with `only`, the options of that verb alone are there (nothing else is imported)."""
    top = argparse.ArgumentParser(
        prog="fiber",
        usage="fiber VERB [options]     (fiber VERB --help shows them)",
        description="FIBER: vision and language with fusion in the backbone.",
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(dest="verb", prog="fiber", metavar="VERB", required=True, help=argparse.SUPPRESS)
    for verb in VERBS:
        if only in (None, verb.name):
            found = module(verb.name)
            sub = verbs.add_parser(
                verb.name, description=found.DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
            )
            found.arguments(sub)
        else:
            verbs.add_parser(verb.name)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; -> exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = parser(given[0] if given else "").parse_args(given)
    try:
        return int(module(arguments.verb).run(arguments))
    except (KnownError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
