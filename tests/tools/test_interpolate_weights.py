"""Interpolation of two exports: the arithmetic, the ends, and exports that are not of one model."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fiber.weights.export import read_export
from tiny_exports import coarse_export, fine_export

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def interpolate(monkeypatch) -> Callable[..., int]:
    """Runs the tool in this process -> exit status."""
    monkeypatch.syspath_prepend(REPO / "tools")
    main = importlib.import_module("interpolate_weights").main
    return lambda *arguments: main([str(x) for x in arguments])


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("exports")
    return fine_export(folder / "before"), fine_export(folder / "after", seed=1, drop_block=0.0)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_every_weight_lies_between(alpha, exports, interpolate, tmp_path):
    assert interpolate(*exports, tmp_path / "out", "--alpha", alpha) == 0
    before, after, found = (read_export(path) for path in (*exports, tmp_path / "out"))
    assert found.tensors.keys() == after.tensors.keys()
    for name, tensor in found.tensors.items():
        expected = (1 - alpha) * before.tensors[name].double() + alpha * after.tensors[name].double()
        torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=1e-6)
    assert any(not torch.equal(before.tensors[name], tensor) for name, tensor in after.tensors.items())
    assert (found.config, found.categories) == (after.config, after.categories)
    assert f"interpolated: {1 - alpha:g} x before + {alpha:g} x after" in (tmp_path / "out/README.md").read_text()


def test_what_is_not_one_model_is_refused(exports, interpolate, tmp_path, capsys):
    other = fine_export(tmp_path / "other", head_blocks=2)
    level = coarse_export(tmp_path / "level")
    for path, reason in ((other, "detector.head_blocks is 1 in A and 2 in B"), (level, "detector.channels is 16 in")):
        assert interpolate(exports[0], path, tmp_path / "out") == 1
        shown = capsys.readouterr().err
        assert shown.startswith(f"error: not one model: {reason}")
        assert shown.count("\n") == 1
    words = json.loads((exports[1] / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "swapped").mkdir()
    for file in exports[1].iterdir():
        (tmp_path / "swapped" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "swapped" / "tokenizer.json").write_text(json.dumps(words))
    assert interpolate(exports[0], tmp_path / "swapped", tmp_path / "out") == 1
    assert "but not the same tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as exited:
        interpolate(*exports, tmp_path / "out", "--alpha", 1.5)
    assert exited.value.code == 2
