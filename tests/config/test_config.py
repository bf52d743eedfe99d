"""Strict configuration: what loads, and the one line that each kind of mistake gives."""

from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from fiber.config.command import parse_command
from fiber.config.loading import apply_override, load_config, to_yaml
from fiber.config.stage1 import Stage1Config, validate
from fiber.config.stage2 import Stage2Config
from fiber.errors import ConfigError

MINIMAL = "output: run\ntokenizer: tok\n"


def load(tmp_path: Path, text: str = MINIMAL, *overrides: str) -> Stage1Config:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(Stage1Config, path, overrides)


def test_numbers_words_and_nested_values(tmp_path: Path) -> None:
    text = MINIMAL + (
        "optim: {lr: 1e-5, eps: 1.0e-8, betas: [0.9, 0.98], warmup: 0.1}\n"
        "train: {steps: 1e5, hang_timeout_s: 30}\n"
        "tracking: {wandb: off}\n"
        "data:\n  train:\n    - path: a\n      weight: 2\n    - {path: b, weight: .5}\n"
    )
    config = load(tmp_path, text)
    assert (config.optim.lr, config.optim.eps, config.optim.betas) == (1e-5, 1e-8, (0.9, 0.98))
    assert (config.train.steps, config.train.hang_timeout_s) == (100_000, 30.0)
    assert type(config.train.steps) is int
    assert config.tracking.wandb == "off"
    assert [(s.path, s.weight, s.field) for s in config.data.train] == [
        ("a", 2.0, "captions"),
        ("b", 0.5, "captions"),
    ]
    assert config.model.num_fused == 6


def test_overrides_in_order_by_key_and_index(tmp_path: Path) -> None:
    text = MINIMAL + "data: {train: [{path: a}, {path: b}]}\n"
    config = load(
        tmp_path,
        text,
        "data.train.1.path=c",
        "optim.lr=3e-4",
        "optim.lr=2e-4",
        "model.image.depths=[1, 1, 2, 1]",
        "model.image.pretrained=null",
        "output=runs/a=b",
        "eval.data=[{path: v}]",
    )
    assert [s.path for s in config.data.train] == ["a", "c"]
    assert config.optim.lr == 2e-4
    assert config.model.image.depths == (1, 1, 2, 1)
    assert config.output == "runs/a=b"
    assert config.eval.data[0].path == "v"


def test_resolved_configuration_round_trips(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL, "optim.lr=1e-7", "data.train=[{path: a}]", "tracking.wandb=offline")
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert load_config(Stage1Config, tmp_path / "resolved.yaml") == config
    assert yaml.safe_load((tmp_path / "resolved.yaml").read_text())["train"]["zero_stage"] == 1


@pytest.mark.parametrize("index", ["1", "-1", "²", "x"])
def test_an_index_that_is_none_is_said(tmp_path: Path, index: str) -> None:
    with pytest.raises(ConfigError, match=f"data.train has 1 entries, no index '{index}'"):
        load(tmp_path, MINIMAL, "data.train=[{path: a}]", f"data.train.{index}.path=b")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.micro_bach=4", "train.micro_bach: unknown key; nearest valid key is train.micro_batch"),
        ("modle.num_fused=4", "modle: unknown key; nearest valid key is model"),
        ("optim.lr=fast", "optim.lr: expected float, got 'fast'"),
        ("train.steps=1.5", "train.steps: expected int, got 1.5"),
        ("train.steps=true", "train.steps: expected int, got True"),
        ("train.precision=fp8", "train.precision: 'fp8' is not one of fp32, bf16, fp16"),
        ("train.zero_stage=4", "train.zero_stage: 4 is not one of 0, 1, 2, 3"),
        ("train.zero_stage=true", "train.zero_stage: 'True' is not one of 0, 1, 2, 3"),
        ("model.image.depths=3", "model.image.depths: expected a list, got 3"),
        ("model.image.depths=[1, x]", "model.image.depths.1: expected int, got 'x'"),
        ("data.train=[{field: captions}]", "data.train.0.path: missing, it has no default"),
        ("data.train.0.path=a", "data.train: expected a list"),
        ("model.num_fused.deep=1", "model.num_fused.deep: model.num_fused is a value, it has no key 'deep'"),
        ("optim=3", "optim: expected keys and values, got 3"),
        ("steps", "override 'steps': write key.path=value"),
        ("optim.lr=[1", "override optim.lr: not valid YAML"),
    ],
)
def test_a_wrong_override_names_its_key(tmp_path: Path, override: str, message: str) -> None:
    text = MINIMAL + "model: {num_fused: 2}\n"
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text, override)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_key_given_twice_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 5: key 'seed' appears twice"):
        load(tmp_path, MINIMAL + "train:\n  seed: 3\n  seed: 4\n")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        load_config(Stage1Config, tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="output: missing"):
        load(tmp_path, "tokenizer: tok\n")


def test_paths_from_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the shell means them: it leaves `key.path=~/set` alone."""
    monkeypatch.setenv("HOME", "/home/ada")
    config = load(tmp_path, "output: ~/runs/a\ntokenizer: '~/t'\n", "data.train=[{path: ~/s}]", "init_from=a~/b")
    assert (config.output, config.tokenizer, config.init_from) == ("/home/ada/runs/a", "/home/ada/t", "a~/b")
    assert (
        load(tmp_path, MINIMAL, "data.train=[{path: x}]", "data.train.0.path=~/s").data.train[0].path == "/home/ada/s"
    )
    assert config.data.train[0].path == "/home/ada/s"
    assert load(tmp_path, MINIMAL + "init_from: ~\n").init_from is None  # YAML's null


@pytest.fixture
def valid(tmp_path: Path) -> list[str]:
    """Overrides that make a valid configuration for two ranks."""
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "a-000000.tar").touch()
    sizes = ["train.global_batch=16", "train.micro_batch=4", "train.accumulation=2"]
    return [f"data.train=[{{path: {shards}}}]", *sizes]


def test_valid_configuration_passes(tmp_path: Path, valid: list[str]) -> None:
    validate(load(tmp_path, MINIMAL, *valid), world=2)
    evaluated = [f"eval.data=[{{path: {tmp_path / 'shards'}}}]", "eval.every=5", "train.best=accuracy"]
    plateau = ["optim.schedule=plateau", "train.stop_after=8", "tuning.mode=lora", "optim.layer_decay=0.9"]
    validate(load(tmp_path, MINIMAL, *valid, *evaluated, *plateau), world=2)


def test_an_evaluation_needs_no_training(tmp_path: Path, valid: list[str]) -> None:
    """Neither its data nor batches that fit the ranks; something to evaluate on."""
    alone = ["data.train=[{path: gone}]", "train.global_batch=7", f"eval.data=[{{path: {tmp_path / 'shards'}}}]"]
    validate(load(tmp_path, MINIMAL, *valid, *alone), world=None)
    for override, message in (("eval.data=[]", "eval.data: nothing to evaluate on"), ("optim.lr=0", "optim.lr")):
        with pytest.raises(ConfigError, match=message):
            validate(load(tmp_path, MINIMAL, *valid, *alone, override), world=None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.global_batch=32"], r"train.global_batch: 32 is not micro_batch 4 x accumulation 2 x 2 ranks = 16"),
        (["train.accumulation=0"], "train.accumulation: must be at least 1, got 0"),
        (["train.precision=bf16", "train.zero_stage=0"], "train.precision: bf16 needs train.zero_stage 1 or more"),
        (["train.offload=all"], "train.offload: all needs train.zero_stage 3, got 1"),
        (["train.offload=optimizer", "train.zero_stage=0"], "train.offload: optimizer needs train.zero_stage >= 1"),
        (["train.ema=1"], r"train.ema: must be less than 1.0, got 1"),
        (["optim.lr=0"], "optim.lr: must be greater than 0"),
        (["optim.betas=[0.9]"], "optim.betas: expected two numbers"),
        (["optim.milestones=[0.5]"], "optim.milestones: belongs to optim.schedule step"),
        (["optim.schedule=step"], "optim.milestones: belongs to optim.schedule step"),
        (["optim.layer_decay=0"], r"optim.layer_decay: must be greater than 0"),
        (["optim.layer_decay=1.5"], r"optim.layer_decay: must be at most 1.0, got 1.5"),
        (["optim.decay_drop=0.667"], "optim.decay_drop: belongs to optim.schedule step"),
        (["optim.decay_drop=2"], r"optim.decay_drop: must be at most 1"),
        (["optim.patience=0"], "optim.patience: must be at least 1"),
        (["optim.schedule=plateau"], "train.best: optim.schedule plateau and train.stop_after need it"),
        (["train.stop_after=2"], "train.best: optim.schedule plateau and train.stop_after need it"),
        (["train.stop_after=-1"], "train.stop_after: must be at least 0"),
        (["train.best=accuracy"], "train.best: needs eval.every and eval.data"),
        (["train.best=accuracy", "eval.every=5"], "train.best: needs eval.every and eval.data"),
        (["tuning.lora_rank=0"], "tuning.lora_rank: must be at least 1"),
        (["tuning.lora_alpha=0"], "tuning.lora_alpha: must be greater than 0"),
        (["tuning.mode=prompt"], "tuning.mode: prompt is of region level; at image level choose full, frozen_towers"),
        (["data.train=[]"], "data.train: no training data"),
        (["data.train=[{path: nowhere}]"], r"data.train.0.path: no folder nowhere"),
        (
            ["data.train=[{path: 's3://b/coco'}]"],
            r"data.train.0.path: s3:// is not read; give pipe:aws s3 cp s3://b/coco/\{\} -",
        ),
        (["data.train=[{path: .}]"], r"data.train.0.path: no .tar shards in ."),
        (["eval.data=[{path: nowhere}]"], r"eval.data.0.path: no folder nowhere"),
        (["data.train=[{path: a, weight: 1}, {path: b}]"], "data.train: give a weight to every source"),
        (["model.num_fused=13"], r"model.num_fused: must lie between 1 and 12 \(the image tower has 24 blocks"),
        (["model.text.heads=7"], "model.text.width: 768 is not a multiple of model.text.heads 7"),
        (["model.image.heads=[4, 8]"], "model.image.heads: 4 stages in depths need 4 numbers, got 2"),
        (["image_size=100"], "image_size: 100 is not a multiple of the image tower's stride 32"),
        (["max_text=2"], "max_text: must hold"),
        (["optim.schedule=step", "optim.milestones=[2,4]"], r"optim.milestones: shares of the steps between 0 and 1"),
        (["optim.warmup=2.5"], "optim.warmup: a share of the steps below 1, or a whole number of steps"),
        (["model.image.window=7", "image_size=64"], "model.image.window: 7 does not divide the 16 x 16 tokens"),
        (["model.image.embed_dim=25"], "model.image.heads.0: 25 channels"),
        (["finetune.label_smoothing=1"], "finetune.label_smoothing: must be less than 1"),
        (["finetune.itc_weight=-1"], "finetune.itc_weight: must be at least 0"),
        (["caption.mle_weight=1.5"], "caption.mle_weight: must be at most 1"),
        (["caption.beam=0"], "caption.beam: must be at least 1"),
        (["eval.batch=0"], "eval.batch: must be at least 1"),
        (["eval.rerank_k=-5"], "eval.rerank_k: must be at least 0"),
        (["data.max_fault_share=50"], "data.max_fault_share: must be at most 1"),
        (["pretrain.mask_probability=7"], "pretrain.mask_probability: must be less than 1"),
        (["optim.betas=[2,3]"], "optim.betas.0: must be less than 1"),
        (["output="], "output: must not be empty"),
        (["seed=-1"], "seed: must be at least 0"),
        (["eval.data=[{path: a, weight: 1}]"], "eval.data.0.weight: unknown key"),
    ],
)
def test_what_cannot_run_is_refused(tmp_path: Path, valid: list[str], overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        validate(load(tmp_path, MINIMAL, *valid, *overrides), world=2)


def test_command_line_reports_one_line_and_status_2(
    tmp_path: Path, valid: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    monkeypatch.setenv("WORLD_SIZE", "2")
    valid = [*valid, f"eval.data=[{{path: {tmp_path / 'shards'}}}]"]
    command = parse_command(
        Stage1Config, validate, [valid[0], "--config", str(path), "--local_rank=1", "--mode", "eval", *valid[1:]]
    )
    assert (command.mode, command.config.train.accumulation) == ("eval", 2)
    with pytest.raises(SystemExit) as exit_:
        parse_command(Stage1Config, validate, ["--config", str(path), *valid, "train.global_batch=3"])
    assert exit_.value.code == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown.startswith("error: train.global_batch: 3 is not")


def test_what_the_file_leaves_open_comes_from_the_starting_point(tmp_path: Path) -> None:
    """Key by key, below what file and overrides say; only sections that the configuration has."""
    starts = {
        "there": {"model": {"num_fused": 3, "image": {"embed_dim": 8, "window": 4}}, "detector": {"channels": 2}}
    }
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL + "\nmodel: {image: {window: 7}}\n")

    def inherit(start: str, output: str | None) -> dict:
        return starts[start]

    config = load_config(Stage1Config, path, ["init_from=there", "model.num_fused=2"], inherit)
    assert (config.model.num_fused, config.model.image.embed_dim, config.model.image.window) == (2, 8, 7)
    assert config.model.text.width == 768
    assert load_config(Stage1Config, path, [], inherit).model.num_fused == 6


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("0o10", 8), ("0x1F", 31), ("1e3", 1000.0), ("1:30", "1:30"), ("2026-01-31", "2026-01-31"),
     ("yes", "yes"), ("off", "off"), ("true", True), ("~", None), ("'a #b'", "a #b"), ("a #b", "a #b"),
     ("", ""), ("+12", 12), ("1_000", "1_000"), ("[1, 0o7]", [1, 7]), ("=x", "=x"), ("12e03", 12000.0)],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    tree: dict = {}
    apply_override(tree, f"a.b={text}")
    assert tree == {"a": {"b": value}}
    assert type(tree["a"]["b"]) is type(value)


def test_a_file_of_an_older_version_is_read_leniently(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL + "train: {steps: 7, renamed_last_month: 3}\nregions: {pictures: 3}\n")
    assert load_config(Stage2Config, path, lenient=True).regions.figures == 3
    assert load_config(Stage2Config, path, lenient=True).train.steps == 7
    assert "not known any more" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"train\.renamed_last_month: unknown key"):
        load_config(Stage2Config, path)


def test_the_file_of_an_older_run_starts_it_again_but_a_wrong_override_does_not(
    tmp_path: Path, valid: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL + "train: {steps: 7, renamed_last_month: 3}\n")
    words = ["--config", str(path), *valid]
    with pytest.raises(SystemExit):  # no run's: the key may be a mistake
        parse_command(Stage1Config, validate, words)
    assert "train.renamed_last_month: unknown key" in capsys.readouterr().err
    (tmp_path / "deepspeed.json").write_text("{}")
    assert parse_command(Stage1Config, validate, [*words, "train.steps=8"]).config.train.steps == 8
    assert "not known any more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_command(Stage1Config, validate, [*words, "train.stepz=8"])
    assert "error: train.stepz: unknown key; nearest valid key is train.steps" in capsys.readouterr().err
    own = path.rename(tmp_path / "mine.yaml")  # beside a user's own deepspeed.json, in which a mistake is one
    with pytest.raises(SystemExit):
        parse_command(Stage1Config, validate, ["--config", str(own), *valid])


def numeric_keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Every key of a schema that holds a number."""
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from numeric_keys(hint, f"{prefix}{name}.")
        elif {int, float} & {hint, *get_args(hint)}:
            yield prefix + name


KEYS = [(kind, key) for kind in (Stage1Config, Stage2Config) for key in numeric_keys(kind)]


@pytest.mark.parametrize(("kind", "key"), KEYS, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_every_number_is_held_in_its_range(kind: type, key: str, tmp_path: Path) -> None:
    """What is no number is always refused, a negative or huge one too, but where a key's range says otherwise; the
    message is one line and begins with the key."""
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    listed = key.endswith((".depths", ".heads", ".betas", ".milestones", "anchor_sizes", "strides", "short_sides"))
    listed &= key != "model.text.heads"
    fitting = {"0"} | ({"-1"} if key == "detector.log_scale" else set())
    if key == "optim.milestones":  # shares, which are checked together with the schedule, see above
        fitting |= {"-1", "1e12", "1000000000000"}
    for value in ("-1", "0", "1e12", "1000000000000", ".nan", ".inf", "-.inf", "true", "'3'", "{}", "[[]]"):
        message = _refusal(kind, path, f"{key}=[{value}]" if listed else f"{key}={value}")
        assert message is None if value in fitting and message is None else message.startswith(key), value
        assert message is None or "\n" not in message


def _refusal(kind: type, path: Path, override: str) -> str | None:
    """Why a configuration is refused; None where it is not."""
    try:
        load_config(kind, path, [override])
    except ConfigError as error:
        return str(error)
    return None


def test_sections_of_other_tasks_and_stages_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    for key in ("data.transform=pil", "eval.rerank_k=3", "model.head_width=8", "task=vqa", "image_size=64"):
        with pytest.raises(ConfigError, match="unknown key"):
            load_config(Stage2Config, path, [key])
