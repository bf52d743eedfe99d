"""Write docs/cli.md, the reference of the `fiber` command, from its parsers.

python tools/cli_docs.py
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from fiber.cli import launcher, main, on_images, shards
from fiber.cli.numbers import BoundedNumber

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """# The command: every verb, its options and an example

Written by `python tools/cli_docs.py` from the parsers of `fiber`; a test holds that it is up to date. `fiber --help`
lists the verbs, `fiber VERB --help` shows what stands here, `fiber --version` prints the version. The shell completes
all of it after [`fiber completion`](#fiber-completion).

Exit status of every verb, where it says nothing else: 0 done; 1 an error, said in one line; 2 wrong usage. A run that
was stopped by a signal and has saved ends with 75: the same command goes on.
"""
ON_IMAGES = tuple(verb.name for verb in main.VERBS if verb.group == main.IMAGES and verb.name != "serve")
SHARED = {  # options that several verbs have are shown once: heading of the table, what adds them, the verbs
    "Options of `train` and `eval`": (launcher.options, ("train", "eval")),
    "Options of the verbs on images": (on_images.common, ON_IMAGES),
}


def blocks(description: str) -> Iterator[str]:
    """A description as Markdown: commands and tables by spaces become code."""
    for part in re.split(r"\n\s*\n", description.strip()):
        if all(line.startswith("    ") for line in part.splitlines()):
            yield f"```text\n{textwrap.dedent(part)}\n```"
        elif re.search(r"\S {3,}\S", part):
            yield f"```text\n{part}\n```"
        else:
            yield re.sub(r"\bdocs/(\w+)\.md", r"[\1](\1.md)", part)


def value_of(action: argparse.Action) -> tuple[str, str]:
    """What an argument takes, and its default, as the table shows them."""
    if action.nargs == 0:
        return "", "off"
    if action.choices:
        value = ", ".join(f"`{choice}`" for choice in action.choices)
    elif isinstance(action.type, BoundedNumber):  # its bounds say more than a placeholder
        value = str(action.type).removeprefix("a ")
    else:
        placeholder = action.metavar if action.option_strings else None
        value = placeholder or ("path" if action.type is Path else "text")
    several = action.nargs in ("+", "*") or type(action).__name__ == "_AppendAction"
    value += " (several)" if several else ""
    optional = action.nargs in ("?", "*") or (action.option_strings and not action.required)
    default = "" if action.default in (None, []) else f"`{action.default}`"
    return value, default if optional else "required"


def rows(add: Callable[[argparse.ArgumentParser], None]) -> list[str]:
    """A table row for each argument that `add` gives a parser, in its order; without --help."""
    parser = argparse.ArgumentParser(add_help=False)
    add(parser)
    return rows_of(parser)


def rows_of(parser: argparse.ArgumentParser) -> list[str]:
    """The rows of a parser's arguments."""
    found = []
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            value, default = value_of(action)
            meaning = (action.help or "") % vars(action)
            if default.startswith("`"):  # it has a column
                meaning = re.sub(rf" \(default:? {re.escape(default.strip('`'))}\)", "", meaning)
            name = ", ".join(action.option_strings) or action.metavar or action.dest
            cells = (cell.replace("|", "\\|") for cell in (f"`{name}`", value, default, meaning))
            found.append(f"| {' | '.join(cells)} |")
    return found


def table(found: list[str], head: str = "| argument | value | default | meaning |") -> str:
    """The rows under their heading; "" without rows."""
    return "\n".join([head, re.sub(r"[^|]+", "---", head), *found]) if found else ""


def verb_section(verb: main.Verb, parser: argparse.ArgumentParser) -> Iterator[str]:
    """What the page says about a verb, part by part."""
    yield f"### fiber {verb.name}"
    yield from blocks(main.module(verb.name).DESCRIPTION)
    own = rows_of(parser)
    for title, (add, verbs) in SHARED.items():
        if verb.name in verbs:
            own = [row for row in own if row not in rows(add)]
            anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            yield f"And the [{title[0].lower()}{title[1:].replace('`', '')}](#{anchor})." if own else ""
    yield table(own)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from sub_commands(verb.name, action)


def sub_commands(verb: str, action: argparse._SubParsersAction) -> Iterator[str]:
    """`fiber config show`, `fiber shards DATASET`: each with its own arguments."""
    if verb == "shards":
        yield "Options of every data set:"
        yield table(rows(shards._writing_options))
        yield "The data sets; `fiber shards DATASET --help` says what each expects, and what its own options mean."
        lines = [f"| `{c.dest}` | {c.help} | {own_options(c.dest)} |" for c in action._choices_actions]
        yield table(lines, "| DATASET | | splits, and own options |")
        return
    for choice in action._choices_actions:
        yield f"`fiber {verb} {choice.dest}`: {choice.help}."
        yield table(rows_of(action.choices[choice.dest]))


def own_options(dataset: str) -> str:
    """The splits of a data set and the options that it has beside those of every data set."""
    parser = argparse.ArgumentParser(add_help=False)
    shards._reading_options(parser, shards.reader(dataset))
    found = [", ".join(map(str, shards.reader(dataset).SPLITS[:5]))]
    for action in parser._actions:
        choices = " " + "\\|".join(action.choices) if action.choices else ""
        found.append(f"`{(action.option_strings or [action.metavar])[0]}{choices}`")
    return "; ".join(part for part in found if part != "`--split`")


def page() -> str:
    """docs/cli.md."""
    (verbs,) = (a for a in main.parser()._actions if isinstance(a, argparse._SubParsersAction))
    parts = [HEAD.strip()]
    for group in dict.fromkeys(verb.group for verb in main.VERBS):
        inside = [verb for verb in main.VERBS if verb.group == group]
        parts.append(f"## {group[0].upper()}{group[1:]}")
        parts.append(table([f"| [`{v.name}`](#fiber-{v.name}) | {v.help} |" for v in inside], "| verb | |"))
        for title, (add, names) in SHARED.items():
            if {verb.name for verb in inside} & set(names):
                parts += [f"### {title}", table(rows(add))]
        for verb in inside:
            parts += verb_section(verb, verbs.choices[verb.name])
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE.name, file=sys.stderr)
