"""`train.preset`: what is chosen for a card, and that the global batch stays."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fiber.config.checks import validate_training
from fiber.config.command import Command
from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config
from fiber.data.text import load_tokenizer
from fiber.errors import ConfigError
from fiber.tasks import preset
from tiny_exports import coarse_export

GB = 1e9


def config(kind: Any = Stage1Config, **train: Any) -> Any:
    made = kind(output="x")
    return replace(made, train=replace(made.train, **{"global_batch": 256, "micro_batch": 16} | train))


def counts(monkeypatch: pytest.MonkeyPatch, plain: float, selective: float, full: float) -> None:
    """The count is 2 GB and so many GB per sample."""
    of: dict[Any, float] = {False: plain, "selective": selective, True: full}
    monkeypatch.setattr(preset, "run_bytes", lambda c, *_: (1, 2 * GB, of[c.model.checkpointing] * GB))


@pytest.mark.parametrize(
    ("gigabytes", "ranks", "micro", "accumulation", "checkpointing"),
    [
        (24, 1, 32, 8, True),  # (0.9 x 24 - 2) / 0.5 = 39; neither 9 nor 13 would be 16
        (40, 1, 16, 16, "selective"),  # 17, but 22 of the lighter kind
        (80, 1, 32, 8, False),  # 35
        (80, 4, 32, 2, False),
        (141, 1, 32, 8, False),  # 62: the largest divisor
        (141, 64, 4, 1, False),  # a rank's share is 4
    ],
)
def test_the_lightest_recomputation_that_holds_the_wanted_micro_batch(
    gigabytes: int, ranks: int, micro: int, accumulation: int, checkpointing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts(monkeypatch, 2.0 if gigabytes > 24 else 2.1, 1.5, 0.5)
    if gigabytes == 40:
        counts(monkeypatch, 2.2, 1.5, 0.5)  # 15 fit
    made = preset.fit(config(preset=gigabytes), ranks)
    train = made.train
    assert (train.micro_batch, train.accumulation, made.model.checkpointing) == (micro, accumulation, checkpointing)
    assert train.micro_batch * train.accumulation * ranks == train.global_batch == 256
    assert train.precision == "bf16"


def test_off_changes_nothing_and_reads_no_card() -> None:
    made = config()
    assert made.train.preset == "off"
    assert preset.fit(made, 3) is made


def test_published_configurations_on_cards(capsys: pytest.CaptureFixture) -> None:
    """By the real count: FIBER-B at 384 px keeps its 64 on 80 GB without recomputation; a detector takes four images
    at a time on 24 GB."""
    coarse = preset.fit(load_config(Stage1Config, "configs/stage1/fiber_base.yaml", ["train.preset=80"]), 64)
    fine = preset.fit(load_config(Stage2Config, "configs/stage2/fiber_base.yaml", ["train.preset=24"]), 8)
    assert (coarse.train.micro_batch, coarse.train.accumulation, coarse.model.checkpointing) == (64, 1, False)
    assert (fine.train.micro_batch, fine.train.accumulation, fine.train.precision) == (4, 2, "bf16")
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("train.preset 80: train.micro_batch=64 train.accumulation=1 model.checkpointing=false")
    assert "GB usable" in said[1]


@pytest.mark.parametrize(
    ("settings", "ranks", "message"),
    [
        ({"preset": "auto"}, 1, "auto needs a CUDA card here; give 24, 40, 80 or 141"),
        ({"preset": 24}, 3, "256 is no multiple of 3 ranks"),
        ({"preset": 24, "zero_stage": 0}, 1, "bf16 needs train.zero_stage 1"),
        ({"preset": 24}, 1, "24 is too small for one sample: 2.0 GB of weights"),
    ],
)
def test_what_no_preset_can_do(settings: Any, ranks: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts(monkeypatch, 90, 60, 30)
    with pytest.raises(ConfigError, match=message):
        preset.fit(config(**settings), ranks)


def test_the_vocabulary_is_that_of_the_run_to_start_from(tmp_path: Path) -> None:
    export = coarse_export(tmp_path / "run" / "export")
    expected = len(load_tokenizer(export))
    assert expected != preset.ROBERTA
    for settings in ({"init_from": str(tmp_path / "run")}, {"tokenizer": str(tmp_path / "run")}):
        made = replace(Stage1Config(output="x"), **{"tokenizer": None} | settings)
        assert preset.vocabulary_of(made) == expected
    assert preset.vocabulary_of(Stage1Config(output="x", tokenizer=None)) == preset.ROBERTA


def test_a_process_fits_its_configuration_before_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch of the file need not add up for the ranks; an evaluation takes the file as it is."""
    counts(monkeypatch, 1, 1, 1)
    made = config(preset=24, micro_batch=48)
    with pytest.raises(ConfigError, match="no training data"):  # and not the arithmetic
        validate_training(made, 1)
    assert preset.fitted(Command(made, "train")).train.micro_batch == 16
    assert preset.fitted(Command(made, "eval")) is made
