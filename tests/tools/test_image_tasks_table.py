"""The table of the image-level tasks from the figures of their evaluations."""

import json
from pathlib import Path

import pytest

from image_tasks_table import main, read, table


def test_both_starts_stand_beside_the_baseline(tmp_path: Path, capsys, monkeypatch) -> None:
    found = {
        "vqa_stage1": {"accuracy": 0.712, "type_majority_accuracy": 0.43},
        "vqa_scratch": {"accuracy": 0.5, "type_majority_accuracy": 0.43},
        "caption_scratch": {"cider": 1.444, "constant_cider": 0.2},
    }
    for name, figures in found.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.json").write_text(json.dumps(figures))
    assert table(read(tmp_path)).splitlines() == [
        "| score | from stage 1 | from nothing | baseline | |",
        "|---|---|---|---|---|",
        "| questions: accuracy | 71.2 | 50.0 | 43.0 | commonest answer of each kind of question |",
        "| captions: CIDEr |  | 144.4 | 20.0 | best single caption for all |",
    ]
    monkeypatch.setattr("sys.argv", ["image_tasks_table.py", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "run launch/shapes_image_tasks.sh first" in capsys.readouterr().err
