"""Every number that the command takes has bounds, and a value outside is refused in words, before any work."""

import argparse
import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fiber.cli import convert, main, shards
from fiber.cli.numbers import LARGEST, BoundedNumber, real_number, whole_number
from fiber.images.draw import MAX_SIDE, MIN_SIDE

REPO = Path(__file__).resolve().parents[2]
Words = tuple[str, ...]


def parsers() -> Iterator[tuple[Words, argparse.ArgumentParser]]:
    """The words before the options, and the options themselves, of every verb and of what is below it."""
    for verb in main.VERBS:
        parser = argparse.ArgumentParser()
        main.module(verb.name).arguments(parser)
        if verb.name == "shards":  # a data set's options are added when it is chosen
            for dataset in shards.names():
                below = argparse.ArgumentParser()
                shards._reading_options(below, shards.reader(dataset))
                shards._writing_options(below)
                yield ("shards", dataset), below
            continue
        yield (verb.name,), parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from (((verb.name, name), below) for name, below in action.choices.items())


PARSERS = dict(parsers())
NUMBERS = [
    pytest.param(words, action, id=" ".join([*words, *action.option_strings[:1]]))
    for words, parser in PARSERS.items()
    for action in parser._actions
    if isinstance(action.type, BoundedNumber)
]


def given(action: argparse.Action, text: object) -> str:
    """An option or a positional argument with a value, as one word: the value may begin with a minus."""
    return f"{action.option_strings[0]}={text}" if action.option_strings else str(text)


def outside(kind: BoundedNumber) -> Iterator[str]:
    """Texts that are no such number."""
    yield from ("nan", "inf", "-inf", "many", "", "1e400")
    yield from (str(bound - 1) for bound in (kind.least, kind.above) if bound is not None)
    yield from (str(bound + 1) for bound in (kind.most, kind.below) if bound is not None)
    yield from (str(bound) for bound in (kind.above, kind.below) if bound is not None)
    if kind.kind is int:
        yield from ("1.5", "1e3", str(10**30))


def required(parser: argparse.ArgumentParser) -> list[str]:
    """Words for what must be given."""
    words = []
    for action in parser._actions:
        if action.required and not isinstance(action, argparse._SubParsersAction):
            words += [*action.option_strings[:1], next(iter(action.choices or ("x",)))]
    return words


def test_there_are_numbers_to_test() -> None:
    assert len(NUMBERS) > 150
    assert {words[0] for words in PARSERS} == {verb.name for verb in main.VERBS}


@pytest.mark.parametrize("words", PARSERS, ids=" ".join)
def test_no_number_is_without_bounds(words: Words) -> None:
    for action in PARSERS[words]._actions:
        assert action.type in (None, str, Path, convert.size) or isinstance(action.type, BoundedNumber), action
        if type(action.default) in (int, float):
            assert isinstance(action.type, BoundedNumber), action
            assert action.default in action.type, action


@pytest.mark.parametrize(("words", "action"), NUMBERS)
def test_a_value_outside_is_refused(words: Words, action: argparse.Action, capsys: pytest.CaptureFixture) -> None:
    kind = action.type
    assert isinstance(kind, BoundedNumber)
    for text in outside(kind):
        with pytest.raises(SystemExit) as end:
            main.main([*words, given(action, text)])
        said = capsys.readouterr().err.splitlines()[-1]
        assert end.value.code == 2, (text, said)
        assert f"argument {'/'.join(action.option_strings) or action.metavar}: {text} is " in said
        bounds = (kind.least, kind.most, kind.above, kind.below)
        told = [str(bound) in said for bound in bounds if bound is not None]
        assert (told and all(told)) or said.endswith(f" is more than {LARGEST}"), said


@pytest.mark.parametrize(("words", "action"), NUMBERS)
def test_the_bounds_themselves_are_taken(words: Words, action: argparse.Action) -> None:
    kind = action.type
    assert isinstance(kind, BoundedNumber)
    largest = LARGEST if kind.kind is int else None
    for bound in (kind.least, kind.most if kind.most is not None else largest):
        if bound is not None:
            taken = main.parse([*words, *required(PARSERS[words]), given(action, bound)])
            assert getattr(taken, action.dest) == bound


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("shards shapes --workers 0", "argument --workers: 0 is not a whole number from 1 to 1024"),
        ("shards shapes --limit -1", "argument --limit: -1 is not a whole number of at least 1"),
        ("shards shapes --quality 500", "argument --quality: 500 is not a whole number from 1 to 100"),
        ("shards shapes --shard-mb nan", "argument --shard-mb: nan is not a number above 0 and at most 1000000"),
        ("shards boxes --val-share 1", "argument --val-share: 1 is not a number above 0 and below 1"),
        ("caption --top-p 2", "argument --top-p: 2 is not a number above 0 and at most 1"),
        ("caption --temperature 0", "argument --temperature: 0 is not a number above 0"),
        ("caption --temperature inf", "argument --temperature: inf is not a number above 0"),
        ("ground --threshold 30", "argument --threshold: 30 is not a number from 0 to 1"),
        ("answer --top 9999999999", "argument --top: 9999999999 is more than 1000000000"),
        ("serve --port 70000", "argument --port: 70000 is not a whole number from 0 to 65535"),
        ("plan --gpus two", "argument --gpus: two is not a whole number of at least 1"),
    ],
)
def test_what_is_said(words: str, said: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(words.split())
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: {said}\n")


def test_bounds_of_the_contact_sheet_are_those_of_drawing() -> None:
    (side,) = (action.type for action in PARSERS["inspect",]._actions if action.dest == "side")
    assert side == whole_number(MIN_SIDE, MAX_SIDE)


def test_numbers_are_whole_or_not() -> None:
    assert (whole_number(1)("3"), type(whole_number(1)("3"))) == (3, int)
    assert (real_number(0, 1)("1"), type(real_number(0, 1)("1"))) == (1.0, float)
    assert str(real_number(above=0, below=1)) == "a number above 0 and below 1"


def test_every_type_of_an_argument_in_the_sources_has_bounds() -> None:
    """Of the tools, too, whose parsers cannot be had without running them."""
    known = {"Path", "size", "kind", "whole_number", "real_number"}  # `kind`: Path or str, in fiber.cli.shards
    found = []
    for file in sorted([*(REPO / "src/fiber/cli").glob("*.py"), *(REPO / "tools").glob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "add_argument"
            ):
                options = {word.arg: word.value for word in node.keywords}
                kind = options.get("type")
                kind = kind.func if isinstance(kind, ast.Call) else kind
                named = kind.id if isinstance(kind, ast.Name) else None
                default = options.get("default")
                counted = isinstance(default, ast.Constant) and type(default.value) in (int, float)
                if (kind is not None and named not in known) or (counted and named not in known - {"Path", "size"}):
                    found.append(f"{file.name}:{node.lineno}")
    assert not found, f"numbers without bounds (fiber.cli.numbers has the types): {', '.join(found)}"


@pytest.mark.parametrize(
    ("tool", "words", "said"),
    [
        ("benchmark_pairs", ["--rows", "19"], "--rows: 19 is not a whole number of at least 20"),
        ("few_shot", ["shards", "--shots", "0"], "--shots: 0 is not a whole number of at least 1"),
    ],
)
def test_tools_refuse_them_too(tool: str, words: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(tool).main(words)
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: argument {said}\n")
