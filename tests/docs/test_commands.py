"""Every `fiber` command that a page, a script, a configuration or a help text shows is one: the real parser takes it,
its keys and configurations exist, and the folders of shards that configurations read are made by docs/data.md."""

import contextlib
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from test_references import REPO, TEXTS, braces, keys, none

from fiber.cli import config as configurations
from fiber.cli import main, shards
from fiber.config.loading import read_tree
from fiber.errors import ConfigError

PLACES = ("mine", "MINE", "CONFIG", "RUN", "runs/")  # configurations and runs that a reader has
HELP = [(f"fiber {verb.name} --help", main.module(verb.name).DESCRIPTION) for verb in main.VERBS]


def blocks(markdown: str) -> str:
    """The code blocks of a page, a command a line; of other texts everything."""
    joined = re.sub(r"\s*\\\n\s*", " ", markdown)
    return "\n".join(re.findall(r"^ *```\w*\n(.*?)^ *```", joined, re.M | re.S))


def shown() -> list[tuple[str, str]]:
    """(where, command without its explanation) of every line that begins with `fiber VERB`."""
    texts = [(str(t.where.relative_to(REPO)), blocks(t.text) if t.where.suffix == ".md" else t.text) for t in TEXTS]
    found = []
    for where, text in [*texts, *HELP, ("fiber --help", main.overview())]:
        for line in re.findall(r"^\s*(?:.*; (?:do )?)?(fiber [a-z].*)$", text, re.M):
            found.append((where, re.split(r" {3,}| #|; |\| |&& | > | \(", line)[0].strip()))
    return found


SHOWN = shown()


def parsed(command: str) -> str:
    """What the parser has against a command; "" if nothing. A capital letter for a number is one."""
    command = command.replace("[", "").replace("]", "").replace("DATASET", "coco_captions").replace("...", "")
    words = [re.sub(r"^[NKS]$", "1", word) for word in shlex.split(command)[1:]]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            main.parse(words)
    except SystemExit as end:
        return said.getvalue() if end.code else ""
    return ""


def test_every_command_is_one() -> None:
    assert len(SHOWN) > 100
    none([f"{where}: {command}: {wrong}" for where, command in dict.fromkeys(SHOWN) if (wrong := parsed(command))])


def test_commands_in_sentences_have_no_options_that_are_not_there() -> None:
    """They may leave out what is required."""
    spans = [(t.where, " ".join(s.split())) for t in TEXTS for s in re.findall(r"`(fiber [a-z][^`]*)`", t.text)]
    assert len(spans) > 30
    wrong = [(where, command, parsed(command)) for where, command in dict.fromkeys(spans)]
    none(
        [
            f"{where}: {command}: {said}"
            for where, command, said in wrong
            if re.search("unrecog|invalid|no verb", said)
        ]
    )


def test_configurations_and_keys_of_commands() -> None:
    offenders = []
    for where, command in SHOWN:
        verb, *words = shlex.split(command)[1:]
        if verb not in ("train", "eval", "plan", "config") or not words:
            continue
        given = [word for word in words if re.match(r"[a-z_]+(\.\w+)*=", word)]
        name = (words[1:] or ["CONFIG"])[0] if verb == "config" else words[0]
        known = keys(name.split("/")[0]) if name.startswith("stage") else keys("stage1", "stage2")
        if not name.startswith(PLACES):
            with contextlib.suppress(ConfigError):
                name = configurations.find(name).name if configurations.find(name) else ""
            offenders += [f"{where}: {name}"] if not name.endswith(".yaml") else []
        for key in (re.sub(r"\.\d+", "", word.partition("=")[0]) for word in given):
            offenders += [f"{where}: {command}: {key}"] if key not in known | {"data"} else []
    none(offenders)


def made_by_the_page() -> dict[str, tuple[str, ...]]:
    """--out -> words, of every command in the list of docs/data.md, as bash reads it (its loops, its braces)."""
    page = (REPO / "docs" / "data.md").read_text()
    (script,) = (block for block in re.findall(r"^```bash\n(.*?)^```", page, re.M | re.S) if "for s in" in block)
    done = subprocess.run(
        ["bash", "-euc", 'fiber() { printf "%s\t" "$@"; echo; }\n' + script],
        capture_output=True,
        text=True,
        check=True,
    )
    commands = [tuple(line.rstrip("\t").split("\t")) for line in done.stdout.splitlines()]
    made = {words[words.index("--out") + 1]: words for words in commands}
    assert len(made) == len(commands) > 40
    return made


def test_the_list_of_data_sets_makes_what_the_configurations_read() -> None:
    made = made_by_the_page()
    read = {
        source["path"]
        for file in (REPO / "configs").glob("stage?/*.yaml")
        for section, key in (("data", "train"), ("eval", "data"))
        for source in read_tree(file).get(section, {}).get(key) or []
        if source["path"].startswith("data/shards/")
    }
    assert len(read) > 30
    none(sorted(read - made.keys()))
    named = {
        (text.where, path.rstrip("/.,"))
        for text in TEXTS
        if text.where.name not in ("data.md", "CHANGELOG.md")
        for word in re.findall(r"(?<![\w/])data/shards/[\w/{},]+", text.text)
        for path in braces(word)
    }
    parents = {str(folder) for path in made for folder in Path(path).parents}
    none([f"{where.relative_to(REPO)}: {path}" for where, path in named if path not in made.keys() | parents])


def test_the_list_of_data_sets_is_right() -> None:
    """The parser takes each command, the split is one of the set, and what is compared with was made before."""
    before: set[str] = set()
    for out, words in made_by_the_page().items():
        assert not parsed(shlex.join(("fiber", *words)))
        given = main.parse(words)
        module = shards.reader(given.dataset)
        assert given.split in module.SPLITS, words
        assert getattr(given, "variant", None) in (None, *getattr(module, "VARIANTS", ()))
        used = {str(path) for path in [*given.against, getattr(given, "answers", None)] if path is not None}
        assert used <= before, used - before
        before.add(out)


@pytest.mark.parametrize(
    "command", ["fiber detec x", "fiber detect --image a", "fiber plan c --gpu many", "fiber train"]
)
def test_what_is_no_command_is_seen(command: str) -> None:
    assert parsed(command)
