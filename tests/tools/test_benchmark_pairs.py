"""The measurement of packing one's own pairs, at a size where only its contract can be judged."""

import importlib
import json
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def test_pairs_are_packed_and_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(REPO / "tools")
    importlib.import_module("benchmark").main(["pairs", "--rows", "30", "--folder", str(tmp_path)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    for part in ("tenth", "all"):
        assert found[part]["pairs_per_second"] > 0
        assert found[part]["listing"]["files_per_second"] > 0
        assert 10 < found[part]["peak_mb"] < 500
    assert list(tmp_path.iterdir()) == []
