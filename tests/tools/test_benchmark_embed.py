"""`benchmark.py embed`, at a size where only its contract can be judged."""

import importlib
import json
from pathlib import Path

import pytest

from tiny_exports import coarse_export, fine_export, images

REPO = Path(__file__).resolve().parents[2]


def test_embedding_is_measured_beside_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(REPO / "tools")
    benchmark = importlib.import_module("benchmark")
    made = images(tmp_path / "images")
    config = tmp_path / "embed.yaml"
    config.write_text(f"model: {coarse_export(tmp_path / 'coarse')}\nimages: {tmp_path / 'images'}\n")
    options = ["batch=4", "workers=2", "bench.repeats=1", "bench.warmup=0"]
    benchmark.main(["embed", "--config", str(config), *options])
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert (results["images"], results["batch"], results["workers"]) == (len(made), 4, 2)
    parts = results["decode"]["processor_seconds"] + results["forward"]["processor_seconds"]
    assert results["share_of_limit"] == pytest.approx(parts / results["embed"]["processor_seconds"])
    assert results["embed"]["images_per_second"] == pytest.approx(len(made) / results["embed"]["seconds"])
    with pytest.raises(ValueError, match="at region level"):
        benchmark.main(["embed", "--config", str(config), f"model={fine_export(tmp_path / 'fine')}"])
