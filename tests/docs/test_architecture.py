"""The page on the architecture: the way from a tar to the loss is short, and its names are in the files it names."""

import ast
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "architecture.md").read_text()
LONGEST_WAY = 15


def definitions(path: Path) -> set[str]:
    """Names of a file's functions, classes and methods; a method also as Class.method."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef):
                names |= {inner.name, f"{node.name}.{inner.name}"}
    return names


def test_the_way_from_a_tar_to_the_loss() -> None:
    rows = re.findall(r"^\| (\d+) \| `([\w/.]+)` \| (.*?) \|", PAGE, re.M)
    files = {int(number): file for number, file, _ in rows}
    assert sorted(files) == list(range(1, len(files) + 1))
    assert len(set(files.values())) == len(files) <= LONGEST_WAY
    for _, file, text in rows:
        named = [word for word in re.findall(r"`([\w.]+)`", text) if not word.endswith(".py")]
        assert named, f"{file}: no function"
        missing = set(named) - definitions(REPO / "src" / "fiber" / file)
        assert not missing, f"{file} does not define {', '.join(sorted(missing))}"


def test_the_page_is_short() -> None:
    assert len(PAGE.splitlines()) <= 110, "two screens"
