"""A few hundred mutated inputs of every reader, and the recorded damage: none ends badly."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path += [str(Path(__file__).parent)]
import harness
import readers

CASES = 180


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> readers.Inputs:
    return readers.Inputs(tmp_path_factory.mktemp("whole"))


def test_damage_of_every_kind_ends_well(inputs, tmp_path, capsys):
    table = harness.campaign(CASES, seed=7, folder=tmp_path, inputs=inputs)
    bad = {outcome for counts in table.values() for outcome in counts} - {*harness.GOOD}
    assert not bad, capsys.readouterr().out
    assert sum(counts["counted"] + counts[readers.LINE] for counts in table.values()) > CASES / 3


def test_whole_inputs_are_read_whole(inputs, tmp_path, monkeypatch):
    """Without damage the readers find no fault: the campaign's own check."""
    monkeypatch.setattr(readers, "damage", lambda rng, path: None)
    for number, name in enumerate(readers.READERS):
        if name == "configuration":  # overrides of it are damage by themselves
            continue
        ending = harness.run_case(harness.Case(name, 0, number), inputs, tmp_path / name)
        assert ending.outcome in harness.GOOD[:2], f"{name}: {ending.detail}"


@pytest.mark.parametrize("bad", ["traceback", "memory", "hang", "silent loss", "outside write"])
def test_bad_endings_are_seen(bad, inputs, tmp_path, monkeypatch):
    def reader(rng: np.random.Generator, whole: readers.Inputs, case: Path) -> str:
        match bad:
            case "traceback":
                raise KeyError("id")
            case "memory":
                bytearray(3 << 30)
            case "hang":
                while True:
                    pass
            case "outside write":
                (case.parent / "evil").write_text("pwned")
        return "silent loss"

    monkeypatch.setattr(harness, "SECONDS", 1)
    monkeypatch.setitem(readers.READERS, "images", reader)
    assert harness.run_case(harness.Case("images", 0, 0), inputs, tmp_path).outcome == bad


@pytest.mark.parametrize("reader", ["stage1", "stage2", "evaluation", "regions", "inspect"])
@pytest.mark.parametrize(
    "name", ["boxes_is_a_string", "cut_index", "one_bad_json", "one_deep_json", "one_truncated_picture"]
)
def test_recorded_damage(name, reader, shared, inputs, tmp_path, monkeypatch):
    """shared/cases/damage: one bad sample is one fault, a cut index is made again."""
    (tmp_path / "case").mkdir()
    folder = shutil.copytree(shared / "cases/damage" / name, tmp_path / "case" / name)
    monkeypatch.setattr(readers, "_set", lambda rng, whole, case: folder)
    try:
        outcome = readers.READERS[reader](np.random.default_rng(0), inputs, tmp_path / "case")
    except readers.KNOWN:
        outcome = readers.LINE
    expected = {
        "inspect": (readers.OK, readers.LINE) if name == "cut_index" else (readers.LINE,),
        "stage1": (readers.OK, readers.COUNTED, readers.LINE),
        "regions": (readers.OK, readers.LINE),
    }
    assert outcome in expected.get(reader, (readers.OK, readers.COUNTED))
