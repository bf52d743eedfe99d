"""The `fiber` command: one verb, one thin module, imported only when it is asked for.

`VERBS` lists the verbs; `fiber.cli.VERB` has a DESCRIPTION, `arguments(parser)` and `run(arguments) -> exit status`.
Neither this module nor the top of a verb's module imports anything heavy, so that help and wrong usage are instant.
"""

import argparse
import difflib
import importlib
import os
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


DATA, TRAIN, MODELS, IMAGES = "data", "train and evaluate", "models", "a trained model on your own images"
VERBS = (
    Verb("shards", DATA, "a data set, or your own folder, into shards"),
    Verb("inspect", DATA, "what is in shards, whether it is whole, a contact sheet"),
    Verb("tokenizer", DATA, "a small vocabulary from the texts of shards"),
    Verb("train", TRAIN, "train a configuration, or go on with it"),
    Verb("eval", TRAIN, "figures of a trained model on held-out data"),
    Verb("plan", TRAIN, "steps, data, memory and hours of a run, before it is started"),
    Verb("report", TRAIN, "a page of a run: figures, curves, and its images, the worst first"),
    Verb("config", TRAIN, "the configurations that are shipped: list, show, copy"),
    Verb("convert", MODELS, "released weights to a model, a model to a file or a program"),
    Verb("push", MODELS, "put a trained model on the Hugging Face hub"),
    Verb("completion", MODELS, "completion of this command by bash or zsh"),
    Verb("caption", IMAGES, "describe images"),
    Verb("answer", IMAGES, "answer a question about them"),
    Verb("match", IMAGES, "how well a text fits"),
    Verb("retrieve", IMAGES, "the images that fit a text best, or the texts for an image"),
    Verb("ground", IMAGES, "a region for each phrase of a sentence"),
    Verb("refer", IMAGES, "the one region that an expression means"),
    Verb("detect", IMAGES, "objects of the named classes"),
    Verb("label", IMAGES, "such objects as a first draft for a labelling tool"),
    Verb("classify", IMAGES, "the classes that fit best"),
    Verb("embed", IMAGES, "features of images or texts, in a file"),
    Verb("serve", IMAGES, "a page on this machine to try a model by hand"),
)
EXAMPLES = {
    DATA: "fiber shards boxes FOLDER --out SHARDS --val-share 0.2",
    TRAIN: "fiber train stage2/odinw data=SHARDS init_from=MODEL",
    MODELS: "fiber convert runs/coarse model",
    IMAGES: 'fiber detect --model MODEL --image photo.jpg --text "red circle, blue square"',
}
EXIT = """exit status:
  0  done
  1  an error, said in one line (2 where a run says it)
  2  wrong usage
  75 a run was stopped by a signal and has saved; the same command goes on
"""


def module(verb: str) -> ModuleType:
    """The module of a verb."""
    return importlib.import_module(f"fiber.cli.{verb}")


def overview() -> str:
    """What `fiber --help` shows of the verbs, by group, with an example each."""
    lines = []
    for group in dict.fromkeys(verb.group for verb in VERBS):
        lines += [f"{group}:", *(f"  {verb.name:10} {verb.help}" for verb in VERBS if verb.group == group)]
        lines += [f"    {EXAMPLES[group]}"] if group in EXAMPLES else []
        lines += [""]
    return "\n".join([*lines, EXIT])


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole command line; with `only`, the options of that verb alone are there (nothing else is imported)."""
    top = argparse.ArgumentParser(
        prog="fiber",
        usage="fiber VERB [options]     (fiber VERB --help shows them)",
        description="FIBER: vision and language with fusion in the backbone.",
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=Version, nargs=0, help="print the version")
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


class Version(argparse.Action):
    """Prints the version and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """What argparse calls."""
        import fiber

        print(f"fiber {fiber.__version__}")
        parser.exit()


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; ends with status 2 where it is wrong."""
    names = [verb.name for verb in VERBS]
    if given and given[0] not in names and not given[0].startswith("-"):
        near = difflib.get_close_matches(given[0], names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        print(f"error: no verb {given[0]}; {hint}(fiber --help lists them)", file=sys.stderr)
        sys.exit(2)
    command = parser(given[0] if given else "")
    arguments, late = command.parse_known_args(given)
    if late and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in late)):
        command.error(f"unrecognized arguments: {' '.join(late)}")
    if late:  # key.path=value behind an option
        arguments.overrides += late
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; -> exit status."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        check_text(arguments)
        return int(module(arguments.verb).run(arguments))
    except BrokenPipeError:  # `fiber ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left unwritten is said to nobody
    except (KnownError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f"error: {missing(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 1


def check_text(arguments: argparse.Namespace) -> None:
    """Raises ValueError for a --text of bytes that are not UTF-8: no vocabulary and no file can have it."""
    given = getattr(arguments, "text", None) or ()
    for text in [given] if isinstance(given, str) else given:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"--text {text!a}: not in UTF-8; is the terminal set to another encoding?") from None


def missing(error: ModuleNotFoundError) -> str:
    """What to install where a package of an extra is not there. Raises `error` where none of ours brings it."""
    from importlib import metadata

    name = (error.name or "").partition(".")[0]
    try:
        needs = metadata.requires("fiber-vl") or []
    except metadata.PackageNotFoundError:  # run from the sources
        needs = []
    for need in needs:
        if need.startswith(name) and "extra ==" in need and not need[len(name) : len(name) + 1].isalnum():
            extra = need.split("extra ==")[1].strip(" \"'")
            return f'{name} is not installed: pip install "fiber-vl[{extra}]"'
    if name == "fiber":
        raise error
    return f"{name} is not installed: pip install {name}"


if __name__ == "__main__":
    sys.exit(main())
