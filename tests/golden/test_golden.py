"""Losses of every kind of run equal the recorded ones: to the last digit on the machine type that recorded them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from runs import KINKS, RUNS, TOLERANCE, curve, machine, make_data, run_all


def recorded(name: str) -> tuple[bool, dict[int, dict[str, float]]]:
    """Whether a file was recorded on this machine type, and its curve."""
    same, steps = False, {}
    for line in Path(__file__).with_name(f"{name}.txt").read_text().splitlines():
        if line.startswith("#"):
            same |= line == f"# machine {machine()}"
        else:
            step, *values = line.split()
            steps[int(step)] = {k: float(v) for k, v in (value.split("=") for value in values)}
    return same, steps


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every run that is asked for (`-k vqa` trains a few)."""
    folder = tmp_path_factory.mktemp("golden")
    asked = {test.callspec.params["name"] for test in request.session.items if test.path == Path(__file__)}
    make_data(folder)
    run_all([name for name in RUNS if name in asked], folder)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_the_recorded_ones(name: str, trained: Path) -> None:
    same, expected = recorded(name)
    steps = dict(curve(trained / name))
    assert steps.keys() == expected.keys()
    for step, values in steps.items():
        if same:
            assert values == expected[step], f"step {step}"
            continue
        norm, wanted = expected[step].pop("grad_norm"), expected[step]
        assert values.pop("grad_norm") == pytest.approx(norm, rel=KINKS), f"step {step}"
        assert values == pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE), f"step {step}"


@pytest.mark.parametrize("name", ["stage2_old_index"])
def test_an_old_index_is_read_as_it_is(name: str, trained: Path) -> None:
    """Not built again, which takes a pass over all tars, and leaves an index that older code cannot read."""
    for file in Path(__file__).with_name("old_index").iterdir():
        assert (trained / "old_index" / file.name).read_bytes() == file.read_bytes(), file.name
