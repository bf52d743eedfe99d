"""tools/photographs_table.py: cells of the table by hand."""

import json
from pathlib import Path

import pytest

import photographs_table


def test_a_cell_is_the_mean_and_the_range_of_seeds() -> None:
    runs = [{"ap": 0.5, "ap50": 0.8}, {"ap": 0.56, "ap50": 0.9}]
    assert photographs_table.cell(runs, ("ap", "ap50")) == "53.0 (50.0-56.0) / 85.0 (80.0-90.0)"
    assert photographs_table.cell(runs[:1], ("ap50",)) == "80.0"


def test_rows_of_captions_stand_beside_chance(tmp_path: Path) -> None:
    for seed, found in enumerate((0.1, 0.2)):
        folder = tmp_path / f"captions_nothing_{seed}"
        folder.mkdir()
        (folder / "test.json").write_text(json.dumps({"t2i_r10": found, "i2t_r10": 0.25, "images": 200.0}))
    (row,) = photographs_table.texts(tmp_path)
    assert row.endswith("| 2 | 15.0 (10.0-20.0) / 25.0 (25.0-25.0) | 5.0 |")


def test_a_folder_without_runs_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["photographs_table.py", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        photographs_table.main()
    assert left.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no finished run")
