"""What the documents name exists: paths, configuration keys, commands, options, Python names, links, sections.

Read are README.md, CHANGELOG.md, all pages of docs/, and the comments at the head of every configuration and launch
script.
Checked against the files, the parsers' sources, the configuration schemas and the modules themselves.
"""

import glob
import importlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPO = Path(__file__).resolve().parents[2]
ROOMS = tuple(path.name for path in (REPO / "src" / "fiber").iterdir() if path.is_dir())
STAGES = ("stage1", "stage2")
# Where a path or a file name may start from, as a reader would understand it.
ROOTS = ("", "src/fiber", "src", "tools", "launch", "configs/stage1", "configs/stage2", "docs", "tests")
FOLDERS = ("src", "docs", "tests", "tools", "configs", "launch")
# Names that are of a run, of downloaded data, of another project, or a place for a name.
THEIRS = ("config.yaml", "data.yaml", "configs/odinw_{13,35}/", "key.path")
SUFFIXES = (
    "py",
    "md",
    "sh",
    "slurm",
    "yaml",
    "txt",
    "tsv",
    "safetensors",
    "onnx",
)  # train.txt is a file, train.steps a key


LISTS = ("CHANGELOG.md", "LOG.md", "benchmarks.md", "shapes.md")  # of what was done or measured: they end there
MODULES = sorted((REPO / "src" / "fiber").rglob("*.py"))
NO_MODULES = ("data.train", "backbone.image_tail")  # a key, a method of a module's `backbone`
WORD = re.compile(r"\w+")
# Written as names and in no source: figures put together from parts, examples of ids, a function of the C library.
MADE_UP = {"accuracy_LABEL", "accuracy_yes_no", "i2t_r10", "zero_shot_top5", "merged_r1"}
MADE_UP |= {"cls_03", "coco_391895", "flickr_1000092795", "malloc_trim"}


class Text(NamedTuple):
    where: Path
    text: str  # all that is read of the file
    code: str  # the parts of it that are code: blocks and spans


def code_of(markdown: str) -> str:
    """Code blocks and spans, one a line; a command that goes on with a backslash is one line."""
    joined = re.sub(r"\s*\\\n\s*", " ", markdown)
    blocks = re.findall(r"^```\w*\n(.*?)^```", joined, re.M | re.S)
    rest = re.sub(r"^```.*?^```", "", joined, flags=re.M | re.S)
    indented = re.findall(r"^ {4}(\S.*)$", rest, re.M)
    spans = [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", rest)]
    return "\n".join([*blocks, *indented, *spans])


def head_of(path: Path) -> str:
    """The comment lines a file starts with."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return "\n".join(line.lstrip("#! ").rstrip() for line in lines if "$schema" not in line)


def texts() -> list[Text]:
    pages = [REPO / "README.md", REPO / "CHANGELOG.md", *sorted((REPO / "docs").rglob("*.md"))]
    out = [Text(path, path.read_text(), code_of(path.read_text())) for path in pages]
    heads = [*sorted((REPO / "configs").glob("*/*.yaml")), *sorted((REPO / "launch").iterdir())]
    return out + [Text(path, head_of(path), re.sub(r"\s*\\\n\s*", " ", head_of(path))) for path in heads]


TEXTS = texts()


def braces(word: str) -> list[str]:
    """caption_{mle,gold}.yaml -> caption_mle.yaml, caption_gold.yaml"""
    match = re.search(r"\{([^{}]*)\}", word)
    if not match:
        return [word]
    return [w for part in match[1].split(",") for w in braces(word[: match.start()] + part + word[match.end() :])]


def exists(word: str, folder: Path) -> bool:
    """Whether a path, a glob or a bare file name is in the repository, seen from its roots or the text's folder."""
    roots = [REPO / root for root in ROOTS] + [folder]
    if any(glob.glob(str(root / word)) for root in roots):
        return True
    return "/" not in word and word.endswith(".py") and any((REPO / "src").rglob(word))


def paths(text: Text) -> Iterator[str]:
    """Paths into this repository, and names of its kinds of files in code."""
    yield from re.findall(rf"(?<![\w/.$}}-])(?:{'|'.join(FOLDERS)})/[\w./*{{}},+-]*", text.text)
    yield from re.findall(rf"(?<![\w/.$}}-])(?:{'|'.join(ROOMS)})/[\w./{{}},-]*(?:\.py\b|/(?=`))", text.text)
    yield from re.findall(r"^[\w./{},*-]+\.(?:py|md|sh|slurm|yaml)\b", text.code, re.M)


def sections(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def keys(*stages: str) -> set[str]:
    """Every key of the stages' configurations by its dotted path, sections included."""

    def below(part: dict, prefix: str, parts: dict) -> Iterator[str]:
        for name, value in part.get("properties", {}).items():
            yield prefix + name
            for reference in re.findall(r"#/\$defs/(\w+)", json.dumps(value)):
                yield from below(parts[reference], f"{prefix}{name}.", parts)

    trees = [json.loads((REPO / "configs" / f"{stage}.schema.json").read_text()) for stage in stages]
    return {key for tree in trees for key in below(tree, "", tree["$defs"])}


def named_keys(text: Text) -> Iterator[str]:
    """Keys that a text names: `a.b` in code where a is a section, a.b=value, and key=value on a launch line."""
    heads = {key.split(".")[0] for key in keys(*STAGES) if "." in key}
    for word in re.findall(r"(?<![\w./$-])[a-z_]+(?:\.(?:[a-z_]+|\d+))+(?![\w./(-])", text.code):
        if word.split(".")[0] in heads and word.split(".")[-1] not in SUFFIXES:
            yield word
    yield from re.findall(r"(?<![\w./$-])([a-z_]+(?:\.(?:[a-z_]+|\d+))+)=", text.text)
    for line in text.code.splitlines():
        if re.search(r"launch/stage|launch/\w+\.sh|deepspeed |stage[12]_\w+\.py", line):
            yield from re.findall(r"(?<=\s)([a-z_]+)=", line)


def commands(text: Text) -> Iterator[tuple[str, str]]:
    """(tool, what follows it on its line) of every tool that a line calls."""
    for line in text.code.splitlines():
        for match in re.finditer(r"(?:tools/)?\b(\w+\.py)((?: +(?!&&|[|;]).*)?)$", line):
            if (REPO / "tools" / match[1]).exists():
                yield match[1], match[2]


def none(offenders: list[str]) -> None:
    assert not offenders, "not there:\n  " + "\n  ".join(sorted(set(offenders)))


def test_paths() -> None:
    none(
        [
            f"{text.where.relative_to(REPO)}: {word}"
            for text in TEXTS
            for word in paths(text)
            if not word.startswith(THEIRS)
            for each in braces(word.rstrip(".,"))
            if not exists(each, text.where.parent)
        ]
    )


def test_links_and_sections() -> None:
    offenders = []
    for text in TEXTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", text.text if text.where.suffix == ".md" else ""):
            if "://" in target:
                continue
            file, _, section = target.partition("#")
            page = (text.where.parent / file).resolve() if file else text.where
            if not page.exists() or (section and section not in sections(page)):
                offenders.append(f"{text.where.relative_to(REPO)}: {target}")
    none(offenders)


def test_links_to_other_places_have_the_form_of_one() -> None:
    """They are not fetched: https, a host with a dot, and nothing of the sentence around them."""
    found = [
        (text.where, target)
        for text in TEXTS
        for target in re.findall(r"\]\((\w+:[^)\s]*)\)|(?<![(\w`])(https?://[^\s)>`]+)", text.text)
        for target in filter(None, target)
    ]
    assert len(found) > 20
    form = re.compile(r"https://(?:[\w-]+\.)+[a-z]{2,}(?::\d+)?(?:/[\w./%+~@#?=&-]*)?")
    none([f"{where.relative_to(REPO)}: {target}" for where, target in found if not form.fullmatch(target)])


def test_a_page_that_names_another_links_it_and_leads_on() -> None:
    """No page is an end: each has a link to another one. A page named in words is a link."""
    offenders = []
    for text in TEXTS:
        where, page = text.where.relative_to(REPO), text.where
        if page.suffix != ".md" or page.name in LISTS:
            continue
        prose = re.sub(r"^```.*?^```", "", text.text, flags=re.M | re.S)
        targets = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s:]+)\)", prose)}
        offenders += [f"{where}: no link to another page"] if not any(t.endswith(".md") for t in targets) else []
        linked = re.sub(r"\[[^\]]*\]\([^)]*\)", "", prose)
        offenders += [f"{where}: {word} is no link" for word in re.findall(r"\bdocs/\w+\.md\b", linked)]
    none(offenders)


def test_configuration_keys() -> None:
    offenders = []
    for text in TEXTS:
        stage = text.where.parent.name
        known = keys(stage) if stage in STAGES else keys(*STAGES)
        for word in named_keys(text):
            plain = re.sub(r"\.\d+", "", word)
            if plain not in known and not plain.startswith(("bench.", *THEIRS)):
                offenders.append(f"{text.where.relative_to(REPO)}: {word}")
    none(offenders)


def test_make_targets_and_verbs() -> None:
    targets = set(re.findall(r"^(\w+):", (REPO / "Makefile").read_text(), re.M))
    command = importlib.import_module("fiber.cli.main").parser()
    verbs = {verb for action in command._actions if action.choices for verb in action.choices}
    offenders = []
    for text in TEXTS:
        where = text.where.relative_to(REPO)
        offenders += [f"{where}: make {t}" for t in re.findall(r"^make (\w+)", text.code, re.M) if t not in targets]
        offenders += [
            f"{where}: fiber {v}" for v in re.findall(r"^fiber (?!VERB)(\w+)", text.code, re.M) if v not in verbs
        ]
    none(offenders)


def test_options_of_tools() -> None:
    """Every --option that stands behind a tool's name is in its source; a data set's is its own or the command's."""
    offenders = []
    for text in TEXTS:
        for tool, rest in commands(text):
            source = (REPO / "tools" / tool).read_text()
            for verb in re.findall(r'fiber\(\["(\w+)"', source):  # a tool that is a verb under its older name
                source += (REPO / "src/fiber/cli" / f"{verb}.py").read_text()
            if tool == "benchmark.py":
                source += "".join(p.read_text() for p in (REPO / "tools").glob("benchmark_*.py"))
            if tool == "make_shards.py":
                source += "".join(p.read_text() for p in (REPO / "src/fiber/data/convert").glob("*.py"))
                name = (rest.split() or ["DATASET"])[0]
                if name.islower() and name.isidentifier() and not exists(f"data/convert/{name}.py", REPO):
                    offenders.append(f"{text.where.relative_to(REPO)}: make_shards.py {name}")
            for option in re.findall(r"(?<!\S)\[?(--[a-z][a-z-]*)", rest):
                if f'"{option}"' not in source and option != "--help":
                    offenders.append(f"{text.where.relative_to(REPO)}: {tool} {option}")
    none(offenders)


def test_python_names() -> None:
    offenders = []
    for text in TEXTS:
        for word in re.findall(r"(?<![\w/.-])fiber\.[a-zA-Z_]+(?:\.[a-zA-Z_]+)*", text.text):
            parts, value = word.split("."), None
            for length in range(len(parts), 0, -1):
                try:
                    value = importlib.import_module(".".join(parts[:length]))
                except ModuleNotFoundError:
                    continue
                break
            for part in parts[length:]:
                value = getattr(value, part, None)
            if value is None:
                offenders.append(f"{text.where.relative_to(REPO)}: {word}")
    none(offenders)


def test_imports_in_scripts() -> None:
    """What the Python inside of a launch script or a page imports from the package exists."""
    offenders = []
    for path in [*sorted((REPO / "launch").iterdir()), *(text.where for text in TEXTS if text.where.suffix == ".md")]:
        for module, names in re.findall(r"from (fiber[\w.]*) import ([\w, ]+)", path.read_text()):
            for word in map(str.strip, names.split(",")):
                try:
                    present = hasattr(importlib.import_module(module), word)
                except ModuleNotFoundError:
                    present = False
                if not present:
                    offenders.append(f"{path.relative_to(REPO)}: from {module} import {word}")
    none(offenders)


def test_files_and_modules_named_in_the_code() -> None:
    """Docstrings and comments, too, name files and modules that exist: `tasks/vqa.py`, `data.order`."""
    known = {".".join(path.relative_to(REPO / "src/fiber").with_suffix("").parts) for path in MODULES}
    file = re.compile(rf"(?<![\w./-])((?:{'|'.join((*ROOMS, *FOLDERS))})/[\w/.]+\.(?:py|md|sh|slurm|yaml))\b")
    rooms = "|".join(room for room in ROOMS if room not in ("config", "predict"))  # sections, methods of that name
    module = re.compile(rf"`(?:fiber\.)?((?:{rooms})(?:\.[a-z_]\w*)+)")
    offenders = []
    for path in [*MODULES, *(REPO / "tools").glob("*.py")]:
        text = path.read_text()
        offenders += [f"{path.relative_to(REPO)}: {w}" for w in file.findall(text) if not exists(w, REPO)]
        for word in module.findall(text):
            if not any(word == name or word.startswith(f"{name}.") for name in known) and word not in NO_MODULES:
                offenders.append(f"{path.relative_to(REPO)}: {word}")
    none(offenders)


def test_names_in_code_style() -> None:
    """`some_name` and `SomeName` stand somewhere in the sources, the tools, the scripts or the configurations."""
    files = [path for folder in FOLDERS if folder not in ("docs", "tests") for path in (REPO / folder).rglob("*")]
    words = {
        word
        for path in files
        if path.suffix not in (".pyc", ".safetensors") and path.is_file()
        for word in WORD.findall(path.read_text())
    }
    offenders = []
    for text in TEXTS:
        spans = re.findall(r"`([A-Za-z]\w*)`", text.text if text.where.suffix == ".md" else "")
        named = [span for span in spans if re.search(r"_|[a-z][A-Z]", span)]
        offenders += [f"{text.where.relative_to(REPO)}: {span}" for span in named if span not in words | MADE_UP]
    none(offenders)


@pytest.mark.parametrize(
    ("markdown", "find", "expected"),
    [
        ("see `tools/gone.py` and data/x.py", paths, {"tools/gone.py", "data/x.py"}),
        ("```\nlaunch/vqa.sh CONFIG train.stepz=3 outputs=x\n```", named_keys, {"train.stepz", "outputs"}),
        ("`optim.heat` is", named_keys, {"optim.heat"}),
        ("```\npython tools/few_shot.py S \\\n   --shotz 3\n```", commands, {("few_shot.py", " S --shotz 3")}),
    ],
)
def test_the_reading_itself(markdown: str, find, expected: set) -> None:
    """What is named is seen, existing or not, so that the tests above can fail."""
    found = set(find(Text(REPO / "README.md", markdown, code_of(markdown))))
    assert expected <= found
    assert not exists("tools/gone.py", REPO)
    assert exists("configs/stage1/caption_mle.yaml", REPO)
    assert braces("a_{b,c}.yaml") == ["a_b.yaml", "a_c.yaml"]
    assert keys("stage1") - keys("stage2") >= {"pretrain.queue_size"}
