"""From a configuration: the same model everywhere, started from either stage, each part with its learning rate."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerFast

from fiber.config.base import TowersConfig, TuningConfig
from fiber.config.loading import load_config
from fiber.config.stage2 import DetectorConfig, RegionConfig, RegionOptimConfig, Stage2Config, validate_stage2
from fiber.data.records import Sample, SetFacts
from fiber.data.shapes.world import WORLDS
from fiber.data.text import load_tokenizer
from fiber.errors import ConfigError, WeightsError
from fiber.tasks import regions
from fiber.tasks.region_samples import collate_regions
from fiber.tasks.regions import build_module, build_sample
from fiber.training.optim import build_optimizer, parameter_groups, set_learning_rate
from fiber.weights.export import inherited_sizes, read_export, write_export
from fiber.weights.from_export import build
from fiber.weights.load import LoadReport
from tiny_exports import MODEL as COARSE
from tiny_exports import coarse_export

MODEL = TowersConfig(**{name: value for name, value in vars(COARSE).items() if name != "head_width"})
REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coarse_export(tmp_path_factory.mktemp("coarse") / "export")


@pytest.fixture
def config(coarse: Path, tmp_path: Path) -> Stage2Config:
    small = DetectorConfig(16, 16, 2, 4, anchor_sizes=(24, 48, 96), strides=(8, 16, 32), log_scale=-2.5)
    regions = RegionConfig(short_sides=(64,), test_side=64, max_side=96, frozen_stages=0)
    return Stage2Config(str(tmp_path), str(coarse), max_text=16, model=MODEL, detector=small, regions=regions)


def batch(config: Stage2Config) -> dict:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(stream, "PNG")
    record = {
        "width": 96,
        "height": 64,
        "boxes": [{"box": [8, 8, 40, 40], "category": 1}, {"box": [50, 10, 80, 50], "category": 2}],
    }
    made = build_sample(config, load_tokenizer(config.tokenizer))
    facts = SetFacts("here", ("circle", "square"), {1: 0, 2: 1})
    sample = Sample("k", [("png", stream.getvalue())], record, facts)
    return collate_regions([made(sample, "boxes", 0, np.random.default_rng(n)) for n in range(2)])


def start_from(task: nn.Module, path: str | Path, tokenizer: PreTrainedTokenizerFast) -> LoadReport:
    return regions.start_from(task, path, tokenizer)


def export_detector(config: Stage2Config, task: nn.Module, categories: list[str]) -> None:
    """What a finished run leaves, with class names that no data set of this test has."""
    export = regions.export(config, load_tokenizer(config.tokenizer), task, task.state_dict())
    folder = Path(config.output) / "export"
    write_export(folder, export.tensors, export.config, export.tokenizer, categories=categories)


def test_the_same_weights_whatever_was_drawn_before(config: Stage2Config) -> None:
    tokenizer = load_tokenizer(config.tokenizer)
    first = build_module(config, tokenizer).state_dict()
    torch.rand(7)
    state = torch.get_rng_state()
    second = build_module(config, tokenizer).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    other = build_module(replace(config, seed=1), tokenizer).state_dict()
    for part in ("head.blocks.0.same.weight", "fpn.laterals.0.weight", "backbone.image.patch_embed.proj.weight"):
        assert not torch.equal(other[f"model.{part}"], first[f"model.{part}"])


def test_started_from_an_image_level_model(config: Stage2Config, coarse: Path) -> None:
    """The backbone is the export's, tensor by tensor; pyramid, head and stage norms are new, the heads unused."""
    task, tensors = build_module(config, load_tokenizer(coarse)), read_export(coarse).tensors
    report = start_from(task, coarse, load_tokenizer(coarse))
    backbone = [name for name in tensors if name.startswith("backbone.") and name != "backbone.image.norm.weight"]
    own = task.model.state_dict()
    shared = [name for name in backbone if name in own]
    assert len(shared) > 100
    assert all(torch.equal(own[name], tensors[name]) for name in shared if name not in report.resized)
    assert {name.split(".")[0] for name in report.new} == {"backbone", "fpn", "head"}
    assert {name.split(".")[2] for name in report.new if name.startswith("backbone")} == {"stage_norms"}
    assert all(name.startswith(("heads.", "backbone.image.norm.")) for name in report.unused)
    wide = replace(config, model=replace(MODEL, text=replace(MODEL.text, width=64)))
    task = build_module(wide, load_tokenizer(coarse))
    with pytest.raises(WeightsError, match="shapes do not fit"):
        start_from(task, coarse, load_tokenizer(coarse))


def test_started_from_its_own_export_and_used(config: Stage2Config) -> None:
    """What a run exports is what `fiber.load` builds, and what another run starts from."""
    tokenizer = load_tokenizer(config.tokenizer)
    task = build_module(config, tokenizer).eval()
    export_detector(config, task, ["circle", "square"])
    export = read_export(config.output)
    assert export.categories == ["circle", "square"]
    assert (export.config.image_size, export.config.max_image_size, export.config.max_text) == (64, 96, 16)
    loaded, _ = build(export)
    again = build_module(replace(config, seed=3), tokenizer).eval()
    report = start_from(again, config.output, tokenizer)
    assert not report.new
    inputs = [batch(config)[name] for name in ("images", "sizes", "ids", "mask")]
    with torch.no_grad():
        expected = task.model(*inputs)[0]
        for model in (loaded.eval(), again.model):
            found = model(*inputs)[0]
            assert all(torch.equal(a, b) for a, b in zip(found.tokens, expected.tokens, strict=True))


def test_every_trained_parameter_takes_part(config: Stage2Config) -> None:
    """With open gates; frozen parts (patch embedding, first stage, captioning's maps) have no gradient."""
    config = replace(config, regions=replace(config.regions, frozen_stages=1))
    task = build_module(config, load_tokenizer(config.tokenizer)).train()
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.3)
    losses, _ = task(batch(config))
    sum(losses.values()).backward()
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in task.named_parameters() if p.grad is not None}
    frozen = {name.removeprefix("model.backbone.") for name, p in task.named_parameters() if not p.requires_grad}
    assert {name.split(".")[1] for name in frozen} == {"patch_embed", "stages", "caption_maps"}
    assert {name for name in frozen if name.startswith("image.stages")} == {
        name for name in frozen if name.startswith("image.stages.0.")
    }


def test_a_run_has_the_sizes_of_the_model_it_starts_from(config: Stage2Config, coarse: Path, tmp_path: Path) -> None:
    """Both towers and, from a detector, pyramid and head; the file's own keys win."""
    tokenizer, file = load_tokenizer(config.tokenizer), tmp_path / "run.yaml"
    export_detector(config, build_module(config, tokenizer), ["circle"])
    file.write_text(f"output: here\ntokenizer: {coarse}\nmax_text: 16\ndetector: {{log_scale: -1.0}}\n")
    found = load_config(Stage2Config, file, [f"init_from={config.output}"], inherited_sizes)
    assert found.model == config.model
    assert found.detector == replace(config.detector, log_scale=-1.0)
    assert not start_from(build_module(found, tokenizer), config.output, tokenizer).new
    above = load_config(Stage2Config, file, [f"init_from={coarse}"], inherited_sizes)
    assert (above.model, above.detector.channels) == (MODEL, 256)
    with pytest.raises(ConfigError, match="init_from: no folder nowhere"):
        load_config(Stage2Config, file, ["init_from=nowhere"], inherited_sizes)


FUSION = ("backbone.fusion.image_to", "backbone.fusion.text_to")
LAST = ("head.box.", "head.centerness.", "head.project_text.", "head.log_scale", "head.token_bias", "head.bias")
TUNED = {
    "full": lambda name: "caption_maps" not in name,
    "frozen_towers": lambda name: name.startswith((*FUSION, "backbone.image.stage_norms", "fpn", "head")),
    "linear": lambda name: name.startswith(LAST),
    "prompt": lambda name: name == "prompt",
    "lora": lambda name: "lora_" in name or name.startswith(("fpn", "head")),
}


@pytest.mark.parametrize("mode", TUNED)
def test_tuning_changes_what_it_names_and_its_export_is_a_plain_model(config: Stage2Config, mode: str) -> None:
    """Some steps from an export of stage 2: the parameters named move, all others stay to the last bit; what is
    exported computes what the tuned model computes, and the next run starts from it."""
    tokenizer = load_tokenizer(config.tokenizer)
    start = replace(config, output=f"{config.output}/start")
    drawn = build_module(start, tokenizer)
    export_detector(start, drawn, ["circle", "square"])
    tuned = replace(config, tuning=TuningConfig(mode, lora_rank=2), optim=RegionOptimConfig(weight_decay=0.1))
    task = build_module(tuned, tokenizer).train()
    start_from(task, start.output, tokenizer)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    with torch.no_grad():  # open gates, or the fusion gets no gradient
        for name, parameter in task.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.5)
                before[name.removeprefix("model.")] = parameter.clone()
    optimizer = build_optimizer(task, tuned.optim)
    set_learning_rate(optimizer, 1e-2)
    for _ in range(2):  # adapters start at 0: their other half moves from the second step on
        optimizer.zero_grad()
        losses, _ = task(batch(config))
        sum(losses.values()).backward()
        optimizer.step()
    moved = {name for name, p in task.model.named_parameters() if not torch.equal(p, before[name])}
    named = {name for name in before if TUNED[mode](name)}
    assert moved <= named
    assert all(name.startswith("head.box_scales.") for name in named - moved)  # of levels that no box here is for

    export_detector(tuned, task, ["circle", "square"])
    loaded, report = build(read_export(tuned.output))
    assert not report.new
    inputs = [batch(config)[name] for name in ("images", "sizes", "ids", "mask")]
    with torch.no_grad():
        expected, found = task.eval().model(*inputs)[0], loaded.eval()(*inputs)[0]
    for one, other in zip((*found.tokens, *found.deltas), (*expected.tokens, *expected.deltas), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    if mode == "prompt":
        with pytest.raises(WeightsError, match="learned prompt, which this run would leave out"):
            start_from(build_module(config, tokenizer), tuned.output, tokenizer)
    assert not start_from(build_module(tuned, tokenizer), tuned.output, tokenizer).unused


def test_learning_rates_of_the_published_recipe() -> None:
    """1e-4, text side 1e-5, biases twice that without decay; by name, against SPEC's list."""
    config = load_config(Stage2Config, REPO / "configs" / "stage2" / "fiber_base.yaml")
    expected = {
        "model.backbone.image.stages.2.blocks.0.fc1.weight": (1e-4, 0.01),
        "model.backbone.image.stages.2.blocks.0.fc1.bias": (2e-4, 0.0),
        "model.backbone.image.stages.2.blocks.0.attn.relative_position_bias": (2e-4, 0.0),
        "model.backbone.image.stages.2.blocks.0.norm1.weight": (1e-4, 0.0),
        "model.backbone.text.layers.3.query.weight": (1e-5, 0.01),
        "model.backbone.text.layers.3.query.bias": (2e-5, 0.0),
        "model.backbone.fusion.text_to_image.2.key.weight": (1e-5, 0.01),
        "model.backbone.fusion.text_to_image.2.gate": (1e-5, 0.0),
        "model.backbone.fusion.image_to_text.2.gate": (1e-4, 0.0),
        "model.fpn.laterals.0.weight": (1e-4, 0.01),
        "model.head.blocks.1.same.bias": (2e-4, 0.0),
        "model.head.log_scale": (1e-4, 0.0),
    }
    matrices = ("weight", "relative_position_bias")
    named = [
        (name, torch.nn.Parameter(torch.zeros((3, 3) if name.endswith(matrices) and "norm" not in name else 3)))
        for name in expected
    ]
    groups = parameter_groups(named, config.optim)
    found = {
        name: (config.optim.lr * group["multiplier"], group["weight_decay"])
        for group in groups
        for name in group["names"]
    }
    assert found == {name: pytest.approx(rate) for name, rate in expected.items()}
    assert {group["role"] for group in groups} >= {"base", "base_bias", "text_base", "text_base_bias", "text_gate"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("detector.strides=[8,16]", "detector.strides: must be 8, 16, 32"),
        ("detector.anchor_sizes=[24]", "detector.anchor_sizes: 3 strides need 3 sizes, got 1"),
        ("detector.groups=7", "detector.channels: 64 is no multiple of groups 7"),
        ("regions.flip=2", r"regions.flip: must be at most 1"),
        ("regions.short_sides=[16]", "regions: sides below 32 px"),
        ("eval.scales=[64,16]", "regions: sides below 32 px"),
        ("eval.scales=[640]", "regions.max_side: 64 px is less than a short side"),
        ("regions.chunk_classes=0", "regions.chunk_classes: must be at least 1, got 0"),
        ("regions.frozen_stages=5", "regions.frozen_stages: the image tower has 4 stages"),
        ("data.train.0.field=questions", "data.train.0.field: stage 2 learns from captions, expressions, boxes"),
        ("model.num_fused=9", "model.num_fused: must lie between 1 and 5"),
        (
            "regions={token_weight: 0, box_weight: 0, centerness_weight: 0, short_sides: [64], max_side: 800}",
            "regions: the weights of all losses are 0",
        ),
    ],
)
def test_wrong_configurations_are_named(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "a.tar").touch()
    paths = [f"{key}.path={tmp_path}" for key in ("data.train.0", "data.train.1", "eval.data.0", "eval.data.1")]
    overrides = [*paths, "init_from=null", override]
    with pytest.raises(ConfigError, match=message):
        validate_stage2(load_config(Stage2Config, REPO / "configs/stage2/shapes_tiny.yaml", overrides), world=2)


def test_the_demo_asks_for_no_more_classes_at_once_than_its_training_prompts_hold() -> None:
    regions = load_config(Stage2Config, REPO / "configs/stage2/shapes_tiny.yaml").regions
    assert regions.chunk_classes is not None
    assert regions.chunk_classes <= WORLDS["easy"].objects[1] + regions.max_negatives


def test_boxes_are_assigned_to_anchors_once_per_micro_batch(
    config: Stage2Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = regions.assign_batch
    monkeypatch.setattr(regions, "assign_batch", lambda *given: calls.append(1) or original(*given))
    task, made = build_module(config, load_tokenizer(config.tokenizer)).eval(), batch(config)
    normalisers = task.loss_normalisers(made)
    losses, _ = task(made | {"loss_normalisers": normalisers})
    assert len(calls) == 1
    fresh, _ = task(batch(config) | {"loss_normalisers": normalisers})
    assert len(calls) == 2
    assert losses.keys() == fresh.keys()
    for name, loss in losses.items():
        assert float(loss.detach()) == float(fresh[name].detach()), name


def test_the_share_of_boxes_without_an_anchor_does_not_depend_on_the_split(config: Stage2Config) -> None:
    """One part of two boxes and one of a single box, which no anchor's centre lies in."""
    task, whole, tiny = build_module(config, load_tokenizer(config.tokenizer)).eval(), batch(config), batch(config)
    tiny["boxes"], tiny["box_image"] = torch.tensor([[1.0, 1.0, 2.0, 2.0]]), tiny["box_image"][:1]
    tiny["box_tokens"] = tiny["box_tokens"][:1]
    parts = [whole, tiny]
    counts = [task.loss_normalisers(part) for part in parts]
    means = {name: sum(count[name] for count in counts) / 2 for name in counts[0]}
    shares = [float(task(p | {"loss_normalisers": means})[1]["assignment/boxes_without_anchor"]) for p in parts]
    assert len(whole["boxes"]) == 4
    assert sum(shares) / 2 == pytest.approx(1 / 5)
