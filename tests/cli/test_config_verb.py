"""`fiber config`: the shipped configurations, by name."""

from pathlib import Path

import pytest
import yaml

from fiber.cli import config, main
from fiber.config.loading import load_config, to_dict
from fiber.config.stage2 import Stage2Config

REPO = Path(__file__).resolve().parents[2]


def test_every_shipped_configuration_is_listed_with_what_it_is_for(capsys: pytest.CaptureFixture) -> None:
    assert main.main(["config", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = sorted(f"{file.parent.name}/{file.stem}" for file in (REPO / "configs").glob("*/*.yaml"))
    assert [line.split()[0] for line in lines] == files
    assert all(len(line.split()) > 4 for line in lines)


def test_a_name_with_and_without_its_stage() -> None:
    assert config.find("stage2/odinw") == config.find("odinw") == config.find("odinw.yaml")
    assert config.find("odinw").samefile(REPO / "configs/stage2/odinw.yaml")


def test_show_and_show_all(capsys: pytest.CaptureFixture) -> None:
    assert main.main(["config", "show", "odinw"]) == 0
    assert capsys.readouterr().out == (REPO / "configs/stage2/odinw.yaml").read_text()
    assert main.main(["config", "show", "odinw", "--all"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown == to_dict(load_config(Stage2Config, REPO / "configs/stage2/odinw.yaml"))
    assert "head_blocks" in shown["detector"]


def test_a_copy_is_edited_and_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mine = tmp_path / "new" / "mine.yaml"
    assert main.main(["config", "copy", "stage2/odinw", str(mine)]) == 0
    assert f"fiber train {mine}" in capsys.readouterr().err
    first = mine.read_text().splitlines()[0]
    assert Path(first.split("$schema=")[1]).is_file()
    assert yaml.safe_load(mine.read_text()) == yaml.safe_load((REPO / "configs/stage2/odinw.yaml").read_text())
    assert main.main(["config", "copy", "stage2/odinw", str(mine)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main.main(["config", "copy", "stage2/odinw", str(tmp_path)]) == 0
    assert (tmp_path / "odinw.yaml").is_file()


def test_a_name_that_is_none(capsys: pytest.CaptureFixture) -> None:
    assert main.main(["config", "show", "nothing_like_it"]) == 1
    assert capsys.readouterr().err.startswith("error: no configuration nothing_like_it")
