"""`fiber plan`: numbers that follow from others by hand."""

import re

import pytest

from fiber.cli import main


def test_steps_cost_and_hours_of_the_paper_s_pre_training(capsys: pytest.CaptureFixture) -> None:
    words = ["plan", "stage1/fiber_base", "--gpus", "64", "--card", "H100", "--mfu", "0.5"]
    assert main.main(words) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["steps"] == "100,000 of 4096 samples (64 x 1 accumulated x 64 GPUs)"
    assert rows["data"].startswith("not here: data/shards/coco_captions/train")
    assert re.match(r"2\d\d M parameters, bf16, ZeRO 1", rows["model"])
    sample = float(rows["cost"].split()[0])
    assert sample == pytest.approx(3 * 252, rel=0.01)  # tasks/flops.py: 252 GFLOP forward
    hours = sample * 1e9 * 100_000 * 4096 / (64 * 989e12 * 0.5) / 3600
    assert float(rows["time"].split()[0]) == pytest.approx(hours, rel=0.01)
    assert 1 < float(rows["memory"].split()[1]) < 80


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--card", "H900"], "error: --card H900: no such card here; one of GB200"),
        (["--gpus", "3"], "error: train.global_batch: 4096 is not micro_batch 64 x accumulation 1 x 3 GPUs"),
        (["train.steps=no"], "error: train.steps: expected int, got 'no'"),
    ],
)
def test_what_cannot_be_planned(words: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    assert main.main(["plan", "stage1/fiber_base", *words]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)
