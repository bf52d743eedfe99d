"""Pages do not drift: messages of docs/troubleshooting.md are in the sources, every page is in the site."""

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / "docs"


def written(node: ast.AST) -> str:
    """A string of the sources as the page writes it: … for what is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ""


def messages_of_sources() -> list[str]:
    found = []
    for path in sorted((REPO / "src" / "fiber").rglob("*.py")):
        found += [" ".join(written(node).split()) for node in ast.walk(ast.parse(path.read_text()))]
    return [text for text in found if len(text) > 10]


def is_in(message: str, texts: list[str]) -> bool:
    """Whether one text of the sources has all parts of the message, in their order."""
    parts = [part.strip() for part in message.split("…") if part.strip()]
    pattern = re.compile(".*".join(re.escape(part) for part in parts))
    return any(pattern.search(text) for text in texts)


def test_every_message_of_the_troubleshooting_page_is_one_of_the_program() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| `(.*?)` \|", page, re.M)
    texts = messages_of_sources()
    assert len(rows) > 15
    missing = [row for row in rows if not is_in(row, texts)]
    assert not missing, "no such message:\n  " + "\n  ".join(missing)
    assert not is_in("the moon is not … made of cheese", texts)


def test_every_page_is_in_the_site() -> None:
    def pages(tree: object) -> list[str]:
        if isinstance(tree, str):
            return [tree]
        if isinstance(tree, dict):
            tree = list(tree.values())
        assert isinstance(tree, list)
        return [page for part in tree for page in pages(part)]

    named = pages(yaml.safe_load((REPO / "mkdocs.yml").read_text())["nav"])
    there = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert len(named) == len(set(named))
    assert set(named) == there, f"not in mkdocs.yml: {there - set(named)}; no such page: {set(named) - there}"


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").is_file()
