"""From a configuration to a task and its export: tuning modes, starting points, vocabularies, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fiber
from fiber.config.base import (
    ImageTowerConfig,
    ModelConfig,
    SourceConfig,
    TextTowerConfig,
    TuningConfig,
)
from fiber.config.loading import to_dict
from fiber.config.stage1 import (
    CaptionConfig,
    FinetuneConfig,
    ImageTextDataConfig,
    RetrievalEvalConfig,
    Stage1Config,
    validate,
)
from fiber.data.convert.writer import write_dataset
from fiber.data.samples.text import TextSample
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shapes.world import WORLDS, answers, generate
from fiber.data.shards import ShardSet
from fiber.data.text import load_tokenizer
from fiber.errors import ConfigError, WeightsError
from fiber.tasks import coarse_model
from fiber.tasks.classifier import LabelledSample
from fiber.tasks.table import task_of
from fiber.tasks.vqa import VqaSample, answer_vocabulary
from fiber.training.run import Job, check_vocabulary, open_tokenizer
from fiber.training.watchdog import Watchdog
from fiber.weights.export import read_export, write_run_export
from fiber.weights.export_config import ExportConfig
from fiber.weights.load import LoadReport

MODEL = ModelConfig(
    image=ImageTowerConfig(embed_dim=8, depths=(1, 2), heads=(1, 2), window=8, drop_path=0.0),
    text=TextTowerConfig(width=16, layers=3, heads=2, intermediate=32, dropout=0.0),
    num_fused=2,
    head_width=12,
    init="fan_in",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with and without an answer vocabulary, and a tokenizer."""
    folder, world = tmp_path_factory.mktemp("build"), WORLDS["easy"]
    about = {"split": "train", "provenance": "drawn", "licence": "none"}
    scenes = list(generate(world, "train", 4, seed=0))
    write_dataset(scenes, folder / "scenes", name="scenes", answers=answers(world), **about)
    write_dataset(scenes, folder / "plain", name="plain", **about)
    train_bpe([c["text"] for s in scenes for c in s.record["captions"]], 320, folder / "tokenizer")
    return folder


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Stage1Config:
    return Stage1Config(
        output=str(tmp_path / "run"),
        tokenizer=str(folder / "tokenizer"),
        task="vqa",
        image_size=64,
        max_text=16,
        model=MODEL,
        data=ImageTextDataConfig(train=(SourceConfig(str(folder / "scenes"), "questions"),), workers=0),
    )


def build(config: Stage1Config) -> nn.Module:
    return task_of(config).build_module(config, load_tokenizer(config.tokenizer)).eval()


def start_from(task: nn.Module, path: Path) -> LoadReport:
    return coarse_model.start_from(task, path, load_tokenizer(path))


def export(config: Stage1Config, task: nn.Module) -> Path:
    weights = {name: parameter.detach() for name, parameter in task.named_parameters()}
    given = task_of(config).export(config, load_tokenizer(config.tokenizer), task, weights)
    write_run_export(config, given, {"accuracy": 0.5})
    return Path(config.output) / "export"


@torch.no_grad()
def perturb(task: nn.Module) -> None:
    """Every trainable parameter moves, as training would have it."""
    draw = torch.Generator().manual_seed(1)
    for parameter in task.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)


def inputs(config: Stage1Config) -> dict[str, Tensor]:
    shards, sample = (
        ShardSet(config.data.train[0].path),
        task_of(config).build_sample(config, load_tokenizer(config.tokenizer)),
    )
    made = sample(shards.read(1), "questions", 0, torch.Generator())
    return {
        "images": made["images"][None],
        "ids": torch.tensor(made["ids"])[None],
        "mask": torch.tensor(made["mask"])[None],
    }


@pytest.mark.parametrize("mode", ["full", "frozen_towers", "lora"])
def test_an_exported_question_model_answers_as_it_did_in_training(
    mode: str, config: Stage1Config, folder: Path
) -> None:
    config = replace(config, tuning=TuningConfig(mode, lora_rank=2), finetune=FinetuneConfig(augment=False))
    task = build(config)
    perturb(task)
    path = export(config, task)
    assert json.loads((path / "answers.json").read_text()) == answers(WORLDS["easy"])
    model = fiber.load(path)
    assert model.tasks == ("answer",)
    assert not any("lora" in name for name in read_export(path).tensors)
    shards, batch = ShardSet(folder / "scenes"), inputs(config)
    extension, data = shards.read(1).images[0]
    image = path.parent / f"p.{extension}"
    image.write_bytes(data)
    (found,) = model.answer(image, shards.record(1)["questions"][0]["question"], top=3)
    with torch.no_grad():
        expected = task.logits(batch)[0].sigmoid().topk(3)
    assert [answer.text for answer in found] == [task.answers[i] for i in expected.indices.tolist()]
    assert [answer.score for answer in found] == pytest.approx(expected.values.tolist(), abs=1e-3)  # two resizes


@pytest.mark.parametrize("mode", ["frozen_towers", "lora"])
def test_tuning_leaves_the_weights_of_the_towers_alone(mode: str, config: Stage1Config) -> None:
    task = build(replace(config, tuning=TuningConfig(mode)))
    trained = {n for n, p in task.named_parameters() if p.requires_grad}
    towers = {n for n in trained if n.startswith(("model.backbone.image.", "model.backbone.text."))}
    assert all("lora_" in n for n in towers)
    assert bool(towers) == (mode == "lora")
    assert any("heads.classifiers.vqa" in n for n in trained)
    fusion = {n for n in trained if ".fusion." in n}
    assert all("lora_" in n for n in fusion) == (mode == "lora")


def test_a_start_brings_what_it_has_and_heads_of_other_answers_stay_new(config: Stage1Config) -> None:
    task = build(config)
    perturb(task)
    path = export(config, task)
    same = build(config)
    report = start_from(same, path)
    assert not any("classifiers" in name for name in report.new)
    assert all(
        name.startswith(("heads.contrastive", "heads.temperature", "heads.mlm", "heads.itm")) for name in report.new
    )
    for name, parameter in same.model.named_parameters():
        if name not in report.new:
            assert torch.equal(parameter, dict(task.model.named_parameters())[name]), name
    (path / "answers.json").write_text(json.dumps(task.answers[::-1]))
    other = build(replace(config, output="elsewhere"))
    before = {n: p.clone() for n, p in other.model.heads.classifiers.named_parameters()}
    assert any("classifiers" in name for name in start_from(other, path).new)
    assert all(torch.equal(p, before[n]) for n, p in other.model.heads.classifiers.named_parameters())


def test_a_task_cannot_start_from_a_model_that_lacks_its_parts(config: Stage1Config) -> None:
    path = export(config, build(config))
    source = replace(config.data.train[0], field="captions")
    retrieval = replace(
        config, task="retrieval_itc", data=replace(config.data, train=(source,)), output=f"{config.output}2"
    )
    with pytest.raises(WeightsError, match=r"would stay at their initial values[\s\S]*heads\.contrastive"):
        start_from(build(retrieval), path)


def test_answers_come_from_the_run_then_the_data_then_the_start(config: Stage1Config, folder: Path) -> None:
    known = answers(WORLDS["easy"])
    plain = SourceConfig(str(folder / "plain"), "questions")
    mixed = replace(config, data=replace(config.data, train=(plain, config.data.train[0])))
    assert answer_vocabulary(mixed) == known
    with pytest.raises(ConfigError, match=r"data\.train: none of the sets has an answer vocabulary"):
        answer_vocabulary(replace(config, data=replace(config.data, train=(plain,))))
    path = export(config, build(config))
    assert answer_vocabulary(replace(config, data=ImageTextDataConfig())) == known
    elsewhere = replace(config, data=ImageTextDataConfig(), output="elsewhere", init_from=str(path))
    assert answer_vocabulary(elsewhere) == known
    (path / "answers.json").write_text(json.dumps(known[::-1]))
    assert answer_vocabulary(config) == known[::-1]


def test_every_task_has_its_sample(config: Stage1Config) -> None:
    kinds = {"vqa": VqaSample, "nlvr2": LabelledSample, "entailment": LabelledSample, "retrieval_itm": TextSample}
    for task, kind in kinds.items():
        changed = replace(config, task=task)
        sample = task_of(changed).build_sample(changed, load_tokenizer(config.tokenizer))
        assert type(sample) is kind
        assert sample.transform.augmented
        assert not sample.transform.flip_sides
        assert sample.images == (2 if task == "nlvr2" else 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning": TuningConfig("prompt")}, "tuning.mode: prompt is of region level"),
        ({"caption": CaptionConfig(samples=1)}, "caption.baseline: mean compares"),
    ],
)
def test_what_cannot_run_is_refused(changes: dict, message: str, config: Stage1Config, folder: Path) -> None:
    train = replace(config.train, global_batch=64)
    with pytest.raises(ConfigError, match=f"^{message}"):
        validate(replace(config, train=train, **changes), world=1)
    validate(replace(config, train=train), world=1)


def test_the_task_must_be_able_to_read_the_data(config: Stage1Config, folder: Path) -> None:
    watchdog = Watchdog(60.0)
    captions = (SourceConfig(str(folder / "scenes"), "captions"),)
    for section, changed in (
        ("data.train", {"data": ImageTextDataConfig(train=captions)}),
        ("eval.data", {"eval": RetrievalEvalConfig(data=captions)}),
    ):
        with pytest.raises(ConfigError, match=rf"{section}\.0\.field: task vqa reads questions, not captions"):
            Job.open(replace(config, **changed), task_of(config), watchdog)
    assert Job.open(config, task_of(config), watchdog).tokenizer
    watchdog.close()
    with pytest.raises(ConfigError, match=r"task: 'vqaa' is not a task; the nearest is vqa"):
        task_of(replace(config, task="vqaa"))
    smoothed = replace(config, task="retrieval_itc", finetune=FinetuneConfig(label_smoothing=0.1))
    with pytest.raises(ConfigError, match="label_smoothing: the contrastive objective has no classes"):
        build(smoothed)


def test_a_tokenizer_that_is_not_the_starts_is_refused(config: Stage1Config, tmp_path: Path) -> None:
    path = export(config, build(config))
    train_bpe(["other words entirely"], 270, tmp_path / "other")
    start = replace(config, init_from=str(path))
    check_vocabulary(start, open_tokenizer(start))
    vocabulary = open_tokenizer(start).get_vocab()
    (tmp_path / "moved").mkdir()
    path.rename(tmp_path / "moved" / "export")  # a run directory holds its model's tokenizer
    start = replace(config, init_from=str(tmp_path / "moved"))
    for tokenizer in (None, str(tmp_path / "moved"), str(tmp_path / "moved" / "export")):
        assert open_tokenizer(replace(start, tokenizer=tokenizer)).get_vocab() == vocabulary
    with pytest.raises(ConfigError, match=r"tokenizer: give a folder or a hub name, or a model to start from"):
        open_tokenizer(replace(config, tokenizer=None, init_from=None))
    other = replace(start, tokenizer=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"tokenizer: .* ids, the model of init_from"):
        check_vocabulary(other, open_tokenizer(other))
    with pytest.raises(ConfigError, match="init_from: no folder"):
        check_vocabulary(replace(config, init_from="nowhere"), open_tokenizer(config))
    with pytest.raises(ConfigError, match="tokenizer: no tokenizer at"):
        open_tokenizer(replace(config, tokenizer=str(tmp_path / "none")))


def test_an_export_says_what_it_was_trained_for(tmp_path: Path) -> None:
    def export(config: ExportConfig) -> str:
        folder = tmp_path / f"{config.stage}{len(config.trained)}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(to_dict(config)))
        return str(folder)

    about = ExportConfig("coarse", MODEL, 300, 1, 32, 8, trained=["pretrain"])
    for start, task, expected in (
        (None, "pretrain", ["pretrain"]),
        (export(about), "caption", ["pretrain", "caption"]),
        (export(replace(about, trained=["pretrain", "vqa"])), "vqa", ["pretrain", "vqa"]),
        (export(replace(about, trained=[])), "caption", []),  # an export of an older version
        (export(replace(about, stage="fine", trained=[])), "caption", ["caption"]),
        (str(tmp_path / "gone"), "caption", []),
    ):
        config = Stage1Config(output="o", tokenizer="t", model=MODEL, task=task, init_from=start)
        assert coarse_model.trained_for(config) == expected, (start, task)
