"""A few kills of the campaign (`kill_campaign.py`): in a save and in an evaluation, of a job of stage 2."""

from pathlib import Path

from kill_campaign import campaign
from launcher import seeded


def test_killed_in_a_save_and_in_an_evaluation(tmp_path: Path) -> None:
    found = campaign(tmp_path, ("stage2:1",), 2, seeded(0, 10**6), ("save", "evaluation"))["stage2:1"]
    assert found.faults == []
    assert found.kills.total() == 2
    assert found.repeated <= 3  # the steps between two saves
