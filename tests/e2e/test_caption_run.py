"""Captioning as a user runs it: `launch/caption.sh` through all three objectives; the same training at every ZeRO
stage; GOLD killed and restarted, its frozen copy included."""

from pathlib import Path

import pytest
import yaml
from launcher import STAGE1, Job, losses, metrics, seeded
from safetensors.torch import load_file

from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.coarse.model import CoarseModel
from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config
from fiber.data.text import load_tokenizer
from fiber.weights.export import read_export, write_export
from fiber.weights.export_config import coarse_config

SCRIPT = Path(__file__).with_name("zero_stages.py")
STEPS = 6
GOLD = "caption.objective=gold"
CIDER = "caption.objective=cider"
KILLED = (GOLD, "caption.gold_refresh=14", "train.steps=24", "train.zero_stage=1", "model.text.dropout=0.1")


@pytest.fixture(scope="module")
def caption_config(config: Path, shapes: Path) -> Path:
    """The tiny model from an export with weights drawn at random, two captions drawn from each image."""
    tree = yaml.safe_load(config.read_text())
    tree["init_from"] = str(shapes / "caption_start")
    tree["task"] = "caption"
    del tree["pretrain"]
    tree["caption"] = {"gold_refresh": 4, "samples": 2, "beam": 2, "max_new_tokens": 10}
    tree["train"] |= {"steps": STEPS, "save_every": 8, "keep": 3}
    path = shapes / "caption.yaml"
    path.write_text(yaml.safe_dump(tree))
    settings, tokenizer = load_config(Stage1Config, path), load_tokenizer(shapes / "tokenizer")
    backbone = build_backbone(settings.model, len(tokenizer), tokenizer.pad_token_id, settings.max_text)
    model = CoarseModel(backbone, head_width=32, vocab_size=len(tokenizer))
    initialise(model, "fan_in", seed=5)
    model.heads.mlm.decoder.bias.data[tokenizer.eos_token_id] = 6.0  # captions end after a few words, not all at once
    write_export(shapes / "caption_start", model.state_dict(), coarse_config(settings, tokenizer), tokenizer)
    return path


@pytest.fixture(scope="module")
def runs(caption_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a run of every variant, all from one job of two ranks."""
    folder = tmp_path_factory.mktemp("captions")
    # The run that is compared bit for bit comes first: where numbers lie in memory can change their last digits.
    variants = [f"killed:{','.join(KILLED)}"]
    variants += [
        f"{name}{stage}:{objective},train.zero_stage={stage},data.workers=0"
        for name, objective in (("gold", GOLD), ("cider", CIDER))
        for stage in range(4)
        if (name, stage) != ("cider", 2)  # which divides gradients, too: one objective shows it
    ]
    variants += [
        f"split:{CIDER},train.zero_stage=1,train.micro_batch=1,train.accumulation=4",
        f"bf16:{GOLD},train.precision=bf16,train.zero_stage=3",
    ]
    with Job(SCRIPT, caption_config, folder, *variants, folder=folder) as job:
        output = job.succeed()
    assert "Traceback" not in output
    return folder


@pytest.mark.parametrize(("objective", "stage"), [("gold", 1), ("gold", 2), ("gold", 3), ("cider", 1), ("cider", 3)])
def test_zero_stages_agree(objective: str, stage: int, runs: Path) -> None:
    """Over a renewal of the frozen copy; captions drawn at training and found at evaluation included."""
    one, other = runs / f"{objective}0", runs / f"{objective}{stage}"
    expected = losses(one)
    assert len(expected) == STEPS
    assert losses(other) == pytest.approx(expected, rel=1e-4)
    assert losses(other, "grad_norm") == pytest.approx(losses(one, "grad_norm"), rel=1e-3)
    figures = [{k: v for k, v in metrics(run)[-1].items() if k.startswith("eval/")} for run in (one, other)]
    assert {"eval/cider", "eval/constant_cider", "eval/bleu_4"} <= set(figures[0])
    assert figures[1] == pytest.approx(figures[0], rel=1e-4)
    if objective == "gold":
        kept = [load_file(run / f"checkpoints/step_{STEPS:06d}/model.safetensors") for run in (one, other)]
        frozen = [name for name in kept[0] if name.startswith("frozen.")]
        moved = [name for name in frozen if not kept[0][name].equal(kept[0][name.replace("frozen.", "model.", 1)])]
        assert len(moved) > 20  # the copy is older than the model
        for name in frozen:
            if not name.endswith("key.bias"):  # their gradient is 0 by symmetry: what moves them is rounding
                assert float((kept[0][name] - kept[1][name]).abs().max()) < 1e-5, name
    else:
        assert max(losses(other, "sampled/tokens").values()) < 8  # drawing stops early, on all ranks together


def test_drawn_captions_do_not_depend_on_the_split(runs: Path) -> None:
    for name in ("weighted/mle", "weighted/reinforce", "reward/cider", "sampled/tokens"):
        expected = losses(runs / "cider1", name)
        assert losses(runs / "split", name) == pytest.approx(expected, rel=1e-3, abs=1e-5), name


def test_bf16_follows_fp32(runs: Path) -> None:
    assert losses(runs / "bf16") == pytest.approx(losses(runs / "gold3"), rel=0.03)


def test_gold_killed_and_restarted_equals_a_whole_run(runs: Path, caption_config: Path, tmp_path: Path) -> None:
    """Loss for loss to the last bit; the final checkpoint's copy is from before the kill."""
    run, victim = tmp_path / "run", seeded(17, 20)
    command = (STAGE1, "--config", caption_config, f"output={run}", *KILLED)
    with Job(*command, folder=tmp_path) as job:
        job.until(lambda: victim in losses(run))
    assert not (run / "summary.json").exists()
    with Job(*command, "data.workers=2", folder=tmp_path) as job:
        output = job.succeed()
    assert "going on from" in output
    assert losses(run) == losses(runs / "killed"), f"killed after step {victim}"
    for name in ("model", "optimizer"):
        path = Path("checkpoints", "step_000024", f"{name}.safetensors")
        assert (run / path).read_bytes() == (runs / "killed" / path).read_bytes(), name
    exported = read_export(run / "export").tensors
    assert not any(name.startswith("frozen.") for name in exported)
    assert "heads.mlm.decoder.weight" in exported
