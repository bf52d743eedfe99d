"""docs/config.md and the schemas are what the code says, and the schemas accept what the code accepts."""

import json
from pathlib import Path

import jsonschema
import pytest

import config_docs
from fiber.config.loading import read_tree

REPO = Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPO / "configs").glob("stage?/*.yaml"))


def test_generated_files_are_up_to_date() -> None:
    for path, text in config_docs.files().items():
        assert path.read_text() == text, f"{path} is out of date: run python tools/config_docs.py"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_configuration_names_and_fits_its_schema(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema=../{path.parent.name}.schema.json"
    schema = json.loads((REPO / "configs" / f"{path.parent.name}.schema.json").read_text())
    tree = read_tree(path)
    jsonschema.validate(json.loads(json.dumps(tree)), schema | {"required": []})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree | {"modle": {}}, schema | {"required": []})
