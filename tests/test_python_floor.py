"""The Python that the project says it needs is the one that its code needs."""

import ast
import re
import sys
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
SOURCES = [*(REPO / "src").rglob("*.py"), *(REPO / "tools").glob("*.py")]


def test_every_place_says_the_same_floor() -> None:
    floor = re.search(r'python_requires=">=(3\.\d+)"', (REPO / "setup.py").read_text())[1]
    settings = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]
    assert settings["ruff"]["target-version"] == "py" + floor.replace(".", "")
    assert settings["mypy"]["python_version"] == floor
    assert sys.version_info[:2] >= tuple(map(int, floor.split(".")))


def test_the_code_needs_the_floor_and_no_more() -> None:
    """It uses names that Python 3.10 does not have, and parses as 3.11."""
    newer = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text(), feature_version=(3, 11))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "typing":
                newer |= {name.name for name in node.names} & {"Self", "LiteralString", "Never", "assert_never"}
            assert not (isinstance(node, ast.ImportFrom) and node.module == "typing") or not (
                {name.name for name in node.names} & {"override", "TypeAliasType"}
            ), f"{path} imports what only Python 3.12 has"
    assert "Self" in newer
