"""An export that others can use: file modes, the model card as the hub reads it, hub ids, and transformers."""

import os
import stat
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from PIL import Image
from transformers import AutoModel

import fiber
from fiber.config.base import SourceConfig, TrainConfig
from fiber.config.stage1 import ImageTextDataConfig, RetrievalEvalConfig, Stage1Config
from fiber.errors import WeightsError
from fiber.weights import hub
from fiber.weights.card import Card, TrainingSet
from fiber.weights.export import read_export, write_run_export
from fiber.weights.hub import export_folder
from fiber.weights.tensors import write_tensors
from tiny_exports import coarse_export, fine_export, images

FIGURES = {"ap": 0.38322, "ap50": 0.4569, "apm": -1.0, "lvis_apl": -1.0, "images": 60.0}


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_every_file_may_be_read_by_whom_the_umask_allows(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        folder = fine_export(tmp_path / "e")
        write_tensors(tmp_path / "one.safetensors", {"a": torch.ones(1)})
    finally:
        os.umask(before)
    files = [*folder.iterdir(), tmp_path / "one.safetensors"]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == {p.name: 0o666 & ~mask for p in files}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask


def front(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def test_the_card_of_a_run_says_what_the_hub_asks_for(tmp_path: Path, task_sets: Path) -> None:
    """Names, splits and licences of the sets, no path of this machine, no figure that does not exist."""
    sets = tuple(SourceConfig(path=str(task_sets / name)) for name in ("train", "classes"))
    config = Stage1Config(
        output=str(tmp_path / "run"),
        tokenizer="none",
        train=TrainConfig(steps=40),
        data=ImageTextDataConfig(train=(*sets, sets[0], SourceConfig(path=str(tmp_path / "gone")))),
        eval=RetrievalEvalConfig(data=sets[:1]),
    )
    export = read_export(coarse_export(tmp_path / "e", vqa=4))
    folder = write_run_export(config, export, FIGURES | {"a/ap": 0.5}, headline=("ap",))
    text, data = (folder / "README.md").read_text(), front(folder)
    assert data["license"] == "other"
    assert (data["library_name"], data["pipeline_tag"]) == ("fiber", "visual-question-answering")
    assert data["datasets"] == ["scenes", "classes", "gone"]
    assert str(tmp_path) not in text
    assert str(task_sets) not in text
    assert text.count("- data: scenes train (none)") == 1
    assert "On scenes train (none)." in text
    assert "optimizer steps: 40" in text
    stopped = write_run_export(config, export, FIGURES, steps=7)
    assert "optimizer steps: 7\n" in (stopped / "README.md").read_text()
    assert "-1" not in text
    assert "| ap50 | 0.4569 |" in text
    read = ModelCard(text).data
    assert [(result.metric_type, result.metric_value, result.dataset_name) for result in read.eval_results] == [
        ("ap", 0.38322, "scenes"),
        ("ap", 0.5, "a"),
    ]
    assert read.model_name == "run"


def test_pipelines_are_told_by_the_heads(tmp_path: Path) -> None:
    assert front(fine_export(tmp_path / "f"))["pipeline_tag"] == "zero-shot-object-detection"
    assert front(coarse_export(tmp_path / "c"))["pipeline_tag"] == "zero-shot-image-classification"
    export = read_export(tmp_path / "c")
    for name in [name for name in export.tensors if name.startswith("heads.contrastive")]:
        del export.tensors[name]
    export.write(tmp_path / "d", Card([TrainingSet("pairs")]))
    assert front(tmp_path / "d")["pipeline_tag"] == "image-to-text"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache in which somebody/tiny lies, in two revisions, and no network."""
    commits = {"main": "a" * 40, "v2": "b" * 40}
    root = tmp_path / "hub" / "models--somebody--tiny"
    (root / "refs").mkdir(parents=True)
    for seed, (name, commit) in enumerate(commits.items()):
        (root / "refs" / name).write_text(commit)
        fine_export(root / "snapshots" / commit, seed)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return root


def test_a_hub_id_may_name_a_revision(cache: Path) -> None:
    assert export_folder("somebody/tiny") == cache / "snapshots" / ("a" * 40)
    assert export_folder("somebody/tiny@v2") == cache / "snapshots" / ("b" * 40)
    assert export_folder("somebody/tiny@" + "b" * 40) == cache / "snapshots" / ("b" * 40)
    weights = [fiber.load(name, device="cpu").model.head.bias for name in ("somebody/tiny", "somebody/tiny@v2")]
    again = fiber.load(cache / "snapshots" / ("b" * 40), device="cpu").model.state_dict()
    loaded = fiber.load("somebody/tiny@v2", device="cpu").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in again.items())
    assert weights[0].shape == weights[1].shape


def test_what_the_hub_says_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without network it is not said that the model does not exist."""
    with pytest.raises(WeightsError, match="nobody/nothing, and the hub cannot be reached, and there is no copy"):
        export_folder("nobody/nothing")
    with pytest.raises(WeightsError, match="hub cannot be reached"):
        export_folder("somebody/tiny@v3")
    for name in ("a/b/c@v1", "some body/tiny", "../secret", "a/..", "a/b--c"):
        with pytest.raises(WeightsError, match="hub id"):
            export_folder(name)
    response = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
    for error, message in (
        (RepositoryNotFoundError("no", response=response), "the hub has no such model"),
        (RevisionNotFoundError("no", response=response), "no revision v3"),
        (LocalEntryNotFoundError("no"), "cannot be reached"),
        (ConnectionError("refused"), "ConnectionError: refused"),
    ):

        def refuse(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
        with pytest.raises(WeightsError, match=message) as caught:
            export_folder("somebody/tiny@v3")
        assert "\n" not in str(caught.value)


def test_a_server_that_refuses_is_a_hub_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(WeightsError, match="the hub cannot be reached"):
        hub.export_folder("somebody/tiny")


def test_transformers_finds_the_detector_and_it_detects_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`AutoModel.from_pretrained(export, trust_remote_code=True)`, boxes and scores to 1e-6."""
    folder = fine_export(tmp_path / "run" / "export")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert model.config.model_type == "fiber"
    predictor, shown = fiber.load(folder, device="cpu"), images(tmp_path / "images")
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in predictor.model.parameters())
    for image in (shown["rgb"], Image.open(shown["alpha"])):
        names = ["square", "circle", "dog"]
        (expected,) = predictor.detect(image, names, threshold=0.01)
        (found,) = model.detect([image], names, threshold=0.01)
        assert len(expected) > 3
        assert found["text_labels"] == [region.label for region in expected]
        assert [names[label] for label in found["labels"].tolist()] == found["text_labels"]
        torch.testing.assert_close(found["boxes"], torch.tensor([r.box for r in expected]), atol=1e-6, rtol=0)
        torch.testing.assert_close(found["scores"], torch.tensor([r.score for r in expected]), atol=1e-6, rtol=0)
    assert not (coarse_export(tmp_path / "c") / "modeling_fiber.py").exists()


def test_reading_an_export_runs_no_code_of_it_and_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """transformers would ask on the terminal whether to run `modeling_fiber.py`, for the tokenizer already."""
    folder = fine_export(tmp_path / "e")
    (folder / "modeling_fiber.py").write_text("raise SystemExit('this was run')")

    def ask(*_: object) -> str:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr("builtins.input", ask)
    capsys.readouterr()
    assert fiber.load(folder, device="cpu").tasks == ("ground", "refer", "detect")
    assert capsys.readouterr() == ("", "")
