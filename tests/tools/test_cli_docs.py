"""docs/cli.md is what the parsers say, and has every verb and every option that they have."""

import argparse
import re

import pytest

import cli_docs
from fiber.cli import main

PAGE = cli_docs.PAGE.read_text()


def test_the_page_is_up_to_date() -> None:
    assert cli_docs.page() == PAGE, "docs/cli.md is out of date: run python tools/cli_docs.py"


@pytest.mark.parametrize("verb", [verb.name for verb in main.VERBS])
def test_a_verb_has_an_example_and_all_its_options(verb: str) -> None:
    """As `fiber VERB --help` prints them, which is another way of reading the parser."""
    section = re.search(rf"^### fiber {verb}\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)[1]
    assert f"fiber {verb} " in "".join(re.findall(r"```text\n(.*?)```", section, re.S)).replace("$(", "")
    shared = {
        re.search(r"\(#(.*)\)", line)[1] for line in section.splitlines() if line.startswith("And the [options")
    }
    tables = section + "".join(
        text
        for title, text in re.findall(r"^### (.*?)\n(.*?)(?=^##)", PAGE, re.M | re.S)
        if title.lower().replace("`", "").replace(" ", "-") in shared
    )
    sub = argparse.ArgumentParser()
    main.module(verb).arguments(sub)
    printed = set(re.findall(r"^  (?:-\w, )?(--[a-z][\w-]*)", sub.format_help(), re.M)) - {"--help"}
    assert printed == printed & set(re.findall(r"`(--[a-z][\w-]*)", tables))


def test_every_argument_says_what_it_means() -> None:
    empty = re.findall(r"^\| `(?:[^|\n]|\\\|)*\|(?:[^|\n]|\\\|)*\|(?:[^|\n]|\\\|)*\|\s*\|$", PAGE, re.M)
    assert not empty, empty
    assert re.search(r"^\| `--limit` \| whole number of at least 1 \|  \| only the first N items \|$", PAGE, re.M)


def test_every_exit_status_of_the_command_is_on_the_page() -> None:
    for status in re.findall(r"^  (\d+) ", main.EXIT, re.M):
        assert re.search(rf"\b{status}\b[ :]+(done|an error|wrong usage|the same command)", PAGE), status
