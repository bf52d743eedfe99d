"""The same training at every ZeRO stage and split of the batch, on two ranks."""

from pathlib import Path

import pytest
from launcher import Job, losses, metrics

SCRIPT = Path(__file__).with_name("zero_stages.py")
STEPS = 20
MLM_ONLY = "pretrain.itc_weight=0,pretrain.itm_weight=0,train.steps=6"


@pytest.fixture(scope="module")
def runs(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a run of every variant, all from one job."""
    folder = tmp_path_factory.mktemp("variants")
    variants = [f"zero{stage}:train.zero_stage={stage},data.workers=0" for stage in range(4)]
    variants += [
        f"whole:{MLM_ONLY}",
        f"split:{MLM_ONLY},train.micro_batch=1,train.accumulation=4",
        "bf16:train.precision=bf16,train.zero_stage=2,train.steps=6",
    ]
    with Job(SCRIPT, config, folder, *variants, folder=folder) as job:
        job.succeed()
    return folder


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_agree(stage: int, runs: Path) -> None:
    """fp32, 20 steps, relative 1e-5; and so do the evaluation's figures at the end."""
    expected, found = losses(runs / "zero0"), losses(runs / f"zero{stage}")
    assert len(expected) == STEPS
    assert found == pytest.approx(expected, rel=1e-5)
    # Norms see a wrong scale at once; later steps of this tiny model double the last digit's difference each.
    norms = [losses(runs / name, "grad_norm") for name in ("zero0", f"zero{stage}")]
    early = [{step: norm for step, norm in of_run.items() if step < STEPS // 2} for of_run in norms]
    assert early[1] == pytest.approx(early[0], rel=1e-5)
    figures = [
        {name: value for name, value in metrics(runs / run)[-1].items() if name.startswith("eval/")}
        for run in ("zero0", f"zero{stage}")
    ]
    assert figures[1] == pytest.approx(figures[0], rel=1e-4)


def test_accumulation_leaves_masked_language_modelling_alone(runs: Path) -> None:
    """Micro batch 4 x 1 equals 1 x 4: the mean runs over the masked tokens of the whole step."""
    name = "weighted/mlm"
    assert losses(runs / "split", name) == pytest.approx(losses(runs / "whole", name), rel=1e-5)
    norms = [losses(runs / run, "grad_norm") for run in ("whole", "split")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_bf16_follows_fp32(runs: Path) -> None:
    expected = losses(runs / "zero2")
    found = losses(runs / "bf16")
    assert found == pytest.approx({step: expected[step] for step in found}, rel=0.03)
