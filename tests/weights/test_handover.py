"""What one stage hands to the other, and a stage-2 run without stage 1: files of the release's layout, exports of
ours, towers of timm and Hugging Face."""

import importlib.util
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_pretrained import DEPTHS, HEADS, WIDTH, roberta_folder, timm_swin

import fiber
from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.text import load_tokenizer
from fiber.errors import WeightsError
from fiber.tasks import regions
from fiber.tasks.table import task_of
from fiber.weights.card import Card
from fiber.weights.export import Export, inherited_sizes, read_export
from fiber.weights.load import CAPTION_MAPS
from fiber.weights.official_file import convert, derive, read_official
from fiber.weights.pretrained import load_pretrained_towers
from released import detection_file, fine_weights, lightning_file, word_tokenizer
from tiny_exports import fine_export

REPO = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("convert_checkpoint", REPO / "tools" / "convert_checkpoint.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

SMALL = ["detector.channels=16", "detector.head_channels=16", "detector.head_blocks=1", "detector.groups=4"]
TEXT, IMAGE = "fusion_backbone.language_backbone.body.model.", "fusion_backbone.backbone.body."
PATCH = "patch_embed.proj.weight"


def config(kind: type, name: str, *overrides: Any) -> Any:
    """A configuration of full size with sizes of a model to start from."""
    return load_config(kind, REPO / "configs" / f"{name}.yaml", list(overrides), inherit=inherited_sizes)


@pytest.fixture(scope="module")
def coarse_init(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The layout of the release's fiber_coarse_init.pt, converted: towers and fusion of a detector, no more -> the
    export, the file's tensors."""
    folder = tmp_path_factory.mktemp("init")
    state = {n: t for n, t in fine_weights(shared).items() if n.startswith((TEXT, IMAGE))}
    state = {n: t for n, t in state.items() if not n.startswith(tuple(f"{IMAGE}norm{i}." for i in (1, 2, 3)))}
    torch.save({"model": state}, folder / "fiber_coarse_init.pt")
    word_tokenizer(folder / "words")
    words = ["--tokenizer", str(folder / "words"), "--text-heads", "4", "--max-text", "32"]
    assert tool.main([str(folder / "fiber_coarse_init.pt"), str(folder / "export"), *words]) == 0
    return folder / "export", state


def test_towers_in_the_fine_layout_start_a_detector(coarse_init: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = coarse_init
    export = read_export(path)
    assert export.towers_only
    assert not any(name.startswith(("head.", "fpn.")) for name in export.tensors)
    start = [f"init_from={path}", f"tokenizer={path}", "max_text=32", *SMALL]
    settings = config(Stage2Config, "stage2/fiber_base", "model.query_norm=false", *start)
    task = regions.build_module(settings, export.tokenizer)
    report = regions.start_from(task, path, export.tokenizer)
    parts = {".".join(name.split(".")[:3]) if "backbone" in name else name.split(".")[0] for name in report.new}
    assert parts == {"fpn", "head", "backbone.image.stage_norms", "backbone.fusion.caption_maps"}
    assert len(report.loaded) + len(report.resized) == len(export.tensors)  # all that was found is there
    own = task.model.state_dict()
    name = "encoder.layer.11.crossattention_t2i.self.key.weight"
    assert torch.equal(own["backbone.fusion.text_to_image.5.key.weight"], state[TEXT + name])
    assert torch.equal(own[f"backbone.image.{PATCH}"], state[IMAGE + PATCH].flip(1))  # read as the release reads it


def test_towers_alone_detect_nothing_and_say_so(coarse_init: tuple[Path, dict[str, torch.Tensor]]) -> None:
    with pytest.raises(WeightsError, match=r"^this export has towers but no pyramid and no head: train from it"):
        fiber.load(coarse_init[0], device="cpu")


@pytest.mark.parametrize(
    "lost",
    [
        f"{TEXT}embeddings.position_embeddings.weight",
        f"{IMAGE}layers.1.blocks.0.attn.relative_position_bias_table",
        f"{TEXT}encoder.layer.0.intermediate.dense.weight",
        "rpn.head.dyhead_tower.0.DyConv.0.conv.weight",
        f"{TEXT}embeddings.word_embeddings.weight",
    ],
)
def test_an_incomplete_file_ends_in_one_line(lost: str, shared: Path, tmp_path: Path) -> None:
    weights = fine_weights(shared)
    del weights[lost]
    torch.save({"model": weights}, tmp_path / "a.pth")
    with pytest.raises(WeightsError) as error:
        derive(read_official(tmp_path / "a.pth"), pad_id=1)
    assert str(error.value) == f"the file has no {lost}; it is incomplete"


def test_drop_path_of_a_released_detector_reaches_a_run_that_starts_from_it(shared: Path, tmp_path: Path) -> None:
    """Shapes do not tell it; every configuration of the release has 0.4."""
    detection_file(shared, tmp_path / "a.pth")
    file = read_official(tmp_path / "a.pth")
    facts = derive(file, pad_id=1, text_heads=4, max_text=32)
    assert "drop path 0.4: the published recipe" in facts.origins
    tensors, rest = convert(file, facts.config)
    words = word_tokenizer(tmp_path / "words")
    path = Export(facts.config, tensors, words, [], [], rest).write(tmp_path / "export", Card())
    (tmp_path / "run.yaml").write_text(f"output: r\ntokenizer: t\nmax_text: 32\ninit_from: {path}\n")
    started = load_config(Stage2Config, tmp_path / "run.yaml", inherit=inherited_sizes)
    assert started.model.image.drop_path == 0.4
    report = regions.start_from(regions.build_module(started, words), path, words)
    assert all(fnmatchcase(name, CAPTION_MAPS) for name in report.new)  # which the file does not have


def test_a_released_pre_trained_file_starts_a_detector_and_captioning(shared: Path, tmp_path: Path) -> None:
    """It has no maps of captioning, which a detector does not read and a captioner learns."""
    lightning_file(shared, tmp_path / "a.ckpt")
    file = read_official(tmp_path / "a.ckpt")
    for name in [name for name in file.state if name.startswith("cross_modal_att_layers")]:
        del file.state[name]
    facts, words = derive(file, pad_id=1), word_tokenizer(tmp_path / "words")
    tensors, rest = convert(file, facts.config)
    path = Export(facts.config, tensors, words, [], [], rest).write(tmp_path / "export", Card())
    settings = config(Stage2Config, "stage2/fiber_base", f"init_from={path}", "max_text=12", *SMALL)
    report = regions.start_from(regions.build_module(settings, words), path, words)
    new = [name for name in report.new if name.startswith("backbone")]
    assert all(fnmatchcase(name, CAPTION_MAPS) or ".stage_norms." in name for name in new)
    settings = config(
        Stage1Config,
        "stage1/caption_mle",
        f"init_from={path}",
        "image_size=128",
        "max_text=12",
        "model.image.window=4",
    )
    row = task_of(settings)
    report = row.start_from(row.build_module(settings, words), path, words)
    assert len(report.new) == 8  # of the fused layers but the last two
    assert all(fnmatchcase(name, CAPTION_MAPS) for name in report.new)


def test_a_detector_starts_a_model_at_image_level(tmp_path: Path) -> None:
    """Towers and fusion are the detector's; heads, and the image tower's last norm, are new."""
    path = fine_export(tmp_path / "fine" / "export")
    export = read_export(path)
    start = [f"init_from={path}", f"tokenizer={path}", "image_size=64", "max_text=12", "model.image.window=2"]
    settings = config(Stage1Config, "stage1/retrieval_coco_itm", *start)
    row, tokenizer = task_of(settings), load_tokenizer(path)
    task = row.build_module(settings, tokenizer)
    report = row.start_from(task, path, tokenizer)
    assert {name.split(".")[0] for name in report.new} == {"backbone", "heads"}
    new = [name for name in report.new if name.startswith("backbone")]
    assert all(name.startswith(("backbone.image.norm.", "backbone.fusion.caption_maps.")) for name in new)
    own = task.model.state_dict()
    kept = [name for name in export.tensors if name.startswith("backbone.") and "stage_norms" not in name]
    assert all(name in report.loaded or name in report.resized for name in kept)
    assert all(torch.equal(own[name], export.tensors[name]) for name in report.loaded)
    assert any(name.startswith("head.") for name in report.unused)


def test_a_detector_starts_from_towers_of_timm_and_hugging_face(tmp_path: Path) -> None:
    """configs/stage2/from_towers.yaml: no stage 1, and no file of FIBER."""
    tokenizer = train_bpe(["a red circle", "two dogs"], 270, tmp_path / "own")
    image, text = timm_swin((384, 384), 12), roberta_folder(tmp_path / "roberta", tokenizer)
    save_file({n: t.contiguous() for n, t in image.state_dict().items()}, tmp_path / "model.safetensors")
    sizes = [
        f"model.image.embed_dim={WIDTH}",
        f"model.image.depths={list(DEPTHS)}",
        f"model.image.heads={list(HEADS)}",
    ]
    sizes += ["model.text.width=32", "model.text.layers=3", "model.text.heads=4", "model.text.intermediate=64"]
    towers = {"image": str(tmp_path), "text": str(tmp_path / "roberta")}
    given = [f"model.{name}.pretrained={source}" for name, source in towers.items()]
    settings = config(Stage2Config, "stage2/from_towers", *SMALL, *sizes, *given, "model.num_fused=2", "max_text=30")
    assert settings.init_from is None
    backbone = regions.build_module(settings, tokenizer).model.backbone
    pretrained = {"image": settings.model.image.pretrained, "text": settings.model.text.pretrained}
    reports = load_pretrained_towers(backbone, tokenizer, **pretrained)
    assert {name.split(".")[1] for name in reports["image"].new if name.startswith("image.")} == {"stage_norms"}
    assert not any(name.startswith("text.") for name in reports["text"].new)
    assert torch.equal(backbone.text.layers[2].fc2.weight, text.encoder.layer[2].output.dense.weight)
    gates = [parameter for name, parameter in backbone.named_parameters() if name.endswith("gate")]
    assert len(gates) == 4
    assert not any(gate.any() for gate in gates)  # at first two separate towers
