"""What both entrypoints share."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import yaml
from torch import nn
from toy_task import Regression, batch_of
from transformers import RobertaConfig, RobertaModel

from fiber.backbone.lora import LoraLinear, merge_lora
from fiber.config.base import ImageTowerConfig, ModelConfig, OptimConfig, TextTowerConfig, TrainConfig
from fiber.config.loading import load_config
from fiber.config.stage1 import RetrievalEvalConfig, Stage1Config
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.text import load_tokenizer
from fiber.errors import ConfigError, Interrupted
from fiber.tasks import pretrain
from fiber.training import run
from fiber.training.watchdog import Watchdog
from fiber.weights.export import inherited_sizes


def not_on_a_cpu(*_: object) -> None:
    """In place of a task's count of FLOP, which only the log of a run on a card has."""
    raise AssertionError("counted on a CPU")


@pytest.fixture
def text_tower(tmp_path: Path) -> Path:
    """A folder with a tokenizer and a RoBERTa of random weights, as `roberta-base` is one."""
    folder = tmp_path / "roberta"
    tokenizer = train_bpe(["a red circle left of a blue square"], 270, folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=514, type_vocab_size=1, pad_token_id=1,
        layer_norm_eps=1e-5, **sizes,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    return folder


def test_towers_start_from_their_files_once(tmp_path: Path, text_tower: Path) -> None:
    text = TextTowerConfig(width=16, layers=3, heads=2, intermediate=32, pretrained=str(text_tower))
    image = ImageTowerConfig(embed_dim=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4), window=2)
    model = ModelConfig(image=image, text=text, num_fused=2, head_width=16)
    config = Stage1Config(output=str(tmp_path / "run"), tokenizer=str(text_tower), max_text=24, model=model)
    tokenizer = load_tokenizer(text_tower)
    expected = RobertaModel.from_pretrained(text_tower).encoder.layer[2].output.dense.weight

    watchdog = Watchdog(60.0)
    nothing = Stream()

    def started(config: Stage1Config) -> torch.Tensor:
        job = run.Job(config, pretrain.TASK, watchdog, tokenizer)
        task = job.build()
        job.start(task, nothing)
        return task.model.backbone.text.layers[2].fc2.weight

    assert torch.equal(started(config), expected)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step_000001")
    assert not torch.equal(started(config), expected)
    watchdog.close()


class Stream:
    """The part of a MixedStream that a run keeps."""

    sources, epoch_length = (), 0

    def state(self, step: int) -> dict:
        return {"step": step}

    def resume(self, state: dict) -> None:
        self.resumed = state


class Adapted(Regression):
    """Only a low-rank adapter of the tower and the head train."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.tower = LoraLinear(self.tower, 2, 6.0, torch.Generator().manual_seed(0))
        self.heads.requires_grad_(True)


def trained(folder: Path, task: nn.Module, accuracy: dict[int, float], stage: int = 1, **settings: object) -> list:
    """Runs `task` for six updates, evaluated at 2, 4, 6 -> the tower's outputs in each evaluation, and what the
    export was given."""
    watchdog, seen, exported, made = Watchdog(60.0), [], [], []

    def evaluate(module: nn.Module, step: int) -> dict[str, float]:
        seen.append(module.tower(batch_of(0)["x"]).clone())
        return {"accuracy": accuracy[step]}

    config = Stage1Config(
        output=str(folder),
        tokenizer="none",
        optim=OptimConfig(lr=0.01, warmup=0),
        train=TrainConfig(
            **{"steps": 6, "global_batch": 4, "micro_batch": 4, "zero_stage": stage, "best": "accuracy", "keep": 1}
            | settings
        ),
        eval=RetrievalEvalConfig(every=2),
    )

    class ToyJob(run.Job):
        """A job whose batches and evaluations need no data."""

        def batches(self, stream: Stream, step: int) -> Iterator[dict]:
            yield from (batch_of(number) for number in range(step, 6))

        def evaluate(self, module: nn.Module, step: int | None) -> dict[str, float]:
            return evaluate(module, step) if step is not None else {"accuracy": 0.0}

        def build(self) -> nn.Module:
            return type(task)()

        def export(self, module: nn.Module, weights: dict, figures: dict, steps: int) -> None:
            exported.append((weights, figures))
            made.append(steps)

    ToyJob(config, replace(pretrain.TASK, flops=not_on_a_cpu), watchdog, None).train(task, Stream())
    watchdog.close()
    pointer = folder / "checkpoints" / "best"  # the export says the steps of its weights
    assert made == [int(pointer.read_text().removeprefix("step_")) if pointer.exists() else 6]
    return [seen, *exported]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_run_exports_and_restores_its_best_weights(stage: int, tmp_path: Path) -> None:
    """Of three evaluations the second is best. The tower is frozen, its adapter trains."""
    frozen = Regression().tower.weight.detach().clone()
    seen, (weights, figures) = trained(tmp_path, Adapted(), {2: 0.1, 4: 0.8, 6: 0.3}, stage)
    assert figures == {"accuracy": 0.8}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {"steps": 6, "best": {"figure": "accuracy", "step": 4}, "eval": {"accuracy": 0.8}}
    plain, task = Regression(), Adapted()
    plain.load_state_dict(merge_lora(weights, 6.0, 2))  # strict
    x = batch_of(0)["x"]
    torch.testing.assert_close(plain.tower(x), seen[1], atol=1e-5, rtol=0)
    assert not torch.allclose(seen[1], seen[2], atol=1e-4)
    assert run.restore(task, str(tmp_path)) == 4
    assert torch.equal(task.tower(x), seen[1])
    assert torch.equal(task.tower.weight, frozen)
    assert not torch.equal(plain.tower.weight, frozen)
    # the same command again: nothing is left to do, and the export comes from the best weights once more
    seen, (again, figures) = trained(tmp_path, Adapted(), {}, stage)
    assert (seen, figures) == ([], {"accuracy": 0.8})
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    # without the best checkpoint the run chooses again, here by an evaluation of what it has
    shutil.rmtree(tmp_path / "checkpoints" / "step_000004")
    _, (_, figures) = trained(tmp_path, Adapted(), {6: 0.3}, stage)
    assert figures == {"accuracy": 0.3}


@pytest.mark.usefixtures("alone")
def test_a_choice_that_is_given_up_does_not_outlive_it(tmp_path: Path) -> None:
    """A run that goes on without train.best has its newest weights evaluated, not those of the old choice."""
    trained(tmp_path, Adapted(), {2: 0.8, 4: 0.3, 6: 0.3}, keep=3)
    assert run.restore(Adapted(), str(tmp_path)) == 2
    trained(tmp_path, Adapted(), {6: 0.3}, best=None)
    assert not (tmp_path / "checkpoints" / "best").exists()
    assert run.restore(Adapted(), str(tmp_path)) == 6


def test_a_run_with_a_checkpoint_does_not_need_what_it_began_from(tmp_path: Path, text_tower: Path) -> None:
    gone, folder = tmp_path / "gone", tmp_path / "run"
    sizes = {"text": {"width": 16, "layers": 3, "heads": 2, "intermediate": 32}, "num_fused": 2, "head_width": 16}
    tree = {"output": str(folder), "tokenizer": str(text_tower), "init_from": str(gone), "max_text": 24}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match="init_from: no folder"):
        load_config(Stage1Config, tmp_path / "run.yaml", inherit=inherited_sizes)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "latest").write_text("step_000004")
    (folder / "config.yaml").write_text(yaml.safe_dump(tree | {"model": sizes}))
    config = load_config(Stage1Config, tmp_path / "run.yaml", inherit=inherited_sizes)
    assert (config.model.num_fused, config.model.text.width) == (2, 16)
    run.check_vocabulary(config, load_tokenizer(text_tower))
    watchdog = Watchdog(60.0)
    run.Job(config, pretrain.TASK, watchdog, None).start(None, Stream())  # reads nothing
    watchdog.close()


def test_a_finished_run_has_its_own_tokenizer(tmp_path: Path, text_tower: Path) -> None:
    config = Stage1Config(output=str(tmp_path / "run"), tokenizer=str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"^tokenizer: "):
        run.open_tokenizer(config)
    (tmp_path / "run" / "export").mkdir(parents=True)  # without one
    with pytest.raises(ConfigError, match=r"^tokenizer: "):
        run.open_tokenizer(config)
    shutil.copytree(text_tower, tmp_path / "run" / "export", dirs_exist_ok=True)
    assert run.open_tokenizer(config).get_vocab() == load_tokenizer(text_tower).get_vocab()


class Ticking(run.Job):
    """A job of toy batches, each after `before(step)`, that evaluates at its end."""

    before = staticmethod(lambda step: None)
    evaluations = 0

    def batches(self, stream: Stream, step: int) -> Iterator[dict]:
        for number in range(step, 10_000):
            self.before(number)
            yield batch_of(number)

    def evaluate(self, module: nn.Module, step: int | None) -> dict[str, float]:
        type(self).evaluations += step is not None
        return {"accuracy": 0.5}

    def export(self, module: nn.Module, weights: dict, figures: dict, steps: int) -> None:
        pass


def tick(folder: Path, before: object = None, steps: int = 6) -> None:
    train = TrainConfig(steps=steps, global_batch=4, micro_batch=4, log_every=1, save_every=2)
    config = Stage1Config(output=str(folder), tokenizer="none", train=train, eval=RetrievalEvalConfig(every=0))
    watchdog = Watchdog(60.0)
    job = Ticking(config, replace(pretrain.TASK, flops=not_on_a_cpu), watchdog, None)
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        with patch.object(Ticking, "before", staticmethod(before or (lambda step: None))):
            job.train(Regression(), Stream())
    finally:
        watchdog.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stopped_run_is_saved_and_not_finished(number: int, tmp_path: Path) -> None:
    tick(tmp_path)
    assert (tmp_path / "summary.json").exists()
    with pytest.raises(Interrupted, match="saved at step 8 of 12: not finished"):
        tick(tmp_path, lambda step: os.kill(os.getpid(), number) if step == 7 else None, steps=12)
    assert not (tmp_path / "summary.json").exists()
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_000008"


@pytest.mark.usefixtures("alone")
def test_a_folder_that_goes_costs_no_weights(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"run was removed or replaced .*; step 6 has been saved there again"):
        tick(folder, lambda step: shutil.rmtree(folder) if step == 4 else None, steps=20)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["latest", "step_000006"]
    tick(folder, steps=8)
    assert [line["step"] for line in logged(folder) if "loss/total" in line] == [6, 7]


@pytest.mark.usefixtures("alone")
def test_a_finished_run_started_again_evaluates_and_logs_nothing_more(tmp_path: Path) -> None:
    """Nor does one that was killed after its evaluation; one killed before that was noted evaluates, in one line."""
    tick(tmp_path)
    lines, before = logged(tmp_path), Ticking.evaluations
    assert ["eval/accuracy" in line for line in lines] == [False] * 6 + [True]
    (tmp_path / "summary.json").unlink()
    tick(tmp_path)
    tick(tmp_path, steps=3)  # fewer than it has
    assert (logged(tmp_path), Ticking.evaluations) == (lines, before)
    assert json.loads((tmp_path / "summary.json").read_text())["eval"] == {"accuracy": 0.5}
    (tmp_path / "checkpoints" / "step_000006" / "evaluated.json").unlink()
    tick(tmp_path)
    assert (logged(tmp_path), Ticking.evaluations) == (lines, before + 1)


@pytest.mark.usefixtures("alone")
def test_a_figure_that_the_evaluation_does_not_have_ends_the_run_before_its_first_step(tmp_path: Path) -> None:
    config = Stage1Config(output=str(tmp_path), tokenizer="none", train=TrainConfig(best="accuracyy"))

    class Rehearsed(run.Job):
        def evaluate(self, module: nn.Module, step: int | None) -> dict[str, float]:
            assert step is None
            return {"accuracy": 0.1, "accuracy_number": 0.0, "loss": 1.0}

    def job(best: str) -> run.Job:
        return Rehearsed(replace(config, train=replace(config.train, best=best)), pretrain.TASK, None, None)

    with pytest.raises(
        ConfigError, match=r"train\.best: the evaluation has no figure 'accuracyy'; it has accuracy, "
    ):
        job("accuracyy").rehearse(Regression())
    job("accuracy").rehearse(Regression())
    job("accuracy_yes_no").rehearse(Regression())  # no such answer in a single batch
    with pytest.raises(ConfigError, match=r"has no figure 'accuracyy_number'"):  # whose family is no figure
        job("accuracyy_number").rehearse(Regression())
    with pytest.raises(ConfigError, match=r"has no figure 'loss_of'"):
        job("loss_of").rehearse(Regression())
