"""Configurations of full size against the table of the release's numbers (configs/recipes.yaml): neither drifts."""

from fnmatch import fnmatchcase
from typing import Any

import pytest

import recipes_docs
from fiber.config.loading import read_tree

TABLE = recipes_docs.table()


def given(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys that a file gives."""
    keys = []
    for key, value in tree.items():
        keys += given(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return keys


def faults(name: str, recipes: dict[str, Any], values: dict[str, Any], keys: list[str]) -> list[str]:
    """What is wrong with the rows of a configuration with these values, of which its file gives these keys."""
    rows, wrong = recipes_docs.rows(name, recipes), []
    for row in rows:
        if row.key not in values or row.ours != values[row.key]:
            wrong.append(f"{row.key}: the table has {row.ours!r}, the configuration {values.get(row.key)!r}")
        if (row.ours == row.release) == bool(row.why):
            wrong.append(f"{row.key}: unexplained, or explained without need ({row.ours!r}, {row.release!r})")
        if not row.where.rpartition(":")[2].isdigit():
            wrong.append(f"{row.key}: no line in {row.where!r}")
    known = {row.key for row in rows} | set(TABLE["own"])
    return wrong + [f"{key}: no row" for key in keys if key not in known]


@pytest.mark.parametrize("name", recipes_docs.names())
def test_every_number_is_the_table_s_and_every_difference_has_a_reason(name: str) -> None:
    keys = given(read_tree(recipes_docs.REPO / "configs" / f"{name}.yaml"))
    assert not faults(name, TABLE["recipes"], recipes_docs.values(name), keys)


def test_no_section_stands_idle() -> None:
    """A section or a configuration without rows that no file bears the name of is a slip."""
    names = recipes_docs.names()
    for pattern in (part for patterns in TABLE["recipes"] for part in patterns.split(", ")):
        assert any(fnmatchcase(name, pattern) for name in names), pattern
    every = [f"{path.parent.name}/{path.stem}" for path in recipes_docs.REPO.glob("configs/stage?/*.yaml")]
    assert all(any(fnmatchcase(name, pattern) for name in every) for pattern in TABLE["alone"])


@pytest.mark.parametrize(
    ("key", "row", "message"),
    [
        ("optim.lr", [1e-5, 1e-5, 1], "the table has 1e-05, the configuration 2e-05"),
        ("optim.lr", [2e-5, 1e-5, 1], "optim.lr: unexplained"),
        ("optim.lr", [2e-5, 2e-5, 1, "because"], "explained without need"),
        ("optim.lr", [2e-5, 2e-5, "a.py:main"], "no line"),
        ("optim.eps", [1e-8, 1e-8, 1], "optim.lr: no row"),
    ],
)
def test_a_drift_is_found(key: str, row: list, message: str) -> None:
    recipes = {"stage1/*": {"file": "a.py", "rows": {key: row}}}
    assert message in " ".join(faults("stage1/vqa", recipes, {"optim.lr": 2e-5, "optim.eps": 1e-8}, ["optim.lr"]))


def test_the_page_is_up_to_date() -> None:
    assert recipes_docs.PAGE.read_text() == recipes_docs.page(), "run python tools/recipes_docs.py"
