"""Captioning of a whole set: the same rows and figures for any ranks and batch size, what servers take, NoCaps by
domain, sets without references; and the reward of training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.coarse.decoding import Caption, SpecialTokens, beam_search
from fiber.coarse.model import CoarseModel
from fiber.config.base import ImageTowerConfig, ModelConfig, TextTowerConfig
from fiber.config.stage1 import CaptionConfig, RetrievalEvalConfig, Stage1Config
from fiber.data.convert.writer import ShardWriter
from fiber.data.samples.text import ImageTransform
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shapes.world import WORLDS, generate
from fiber.data.shards import ShardSet
from fiber.data.text import load_tokenizer
from fiber.errors import ConfigError
from fiber.evaluation import captioning
from fiber.evaluation.caption_samples import CaptionEvalSample
from fiber.evaluation.captioning import CiderReward, caption_reward, evaluate_captions, server_id
from fiber.evaluation.context import EvalContext
from fiber.evaluation.metrics import caption_scores as metrics
from fiber.evaluation.metrics.caption_scores import DocumentFrequency, cider_d
from fiber.evaluation.predictions import read_predictions
from fiber.evaluation.progress import Progress
from fiber.tasks.caption import CaptionTask

IMAGES, LENGTH = 7, 12


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`set`: seven scenes as COCO images; `domains`: the same with NoCaps' domains; `test`: without captions; a
    `tokenizer`."""
    folder = tmp_path_factory.mktemp("captions")
    scenes = list(generate(WORLDS["easy"], "val", IMAGES, seed=0))
    train_bpe([c["text"] for scene in scenes for c in scene.record["captions"]], 300, folder / "tokenizer")
    for name in ("set", "domains", "test"):
        with ShardWriter(folder / name, name, max_samples=3) as writer:
            for number, scene in enumerate(scenes):
                record = {**scene.record, "image_id": f"{'coco' if name == 'set' else 'nocaps'}_{40 - number}"}
                if name == "domains":
                    record["domain"] = metrics.DOMAINS[number % 2]
                if name == "test":
                    del record["captions"]
                writer.add(type(scene)(scene.key, scene.images, record))
    return folder


def make_task(world: Path) -> CaptionTask:
    """Weights drawn large and gates open, so that images get captions of their own."""
    tokenizer = load_tokenizer(world / "tokenizer")
    config = ModelConfig(
        image=ImageTowerConfig(embed_dim=8, depths=(1, 2), heads=(1, 2), window=4),
        text=TextTowerConfig(width=16, layers=3, heads=2, intermediate=32),
        num_fused=2,
        head_width=16,
    )
    backbone = build_backbone(config, len(tokenizer), tokenizer.pad_token_id, LENGTH)
    model = CoarseModel(backbone, head_width=16, vocab_size=len(tokenizer))
    initialise(model, "fan_in", 0)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(3.0)
    return CaptionTask(model, CaptionConfig(), SpecialTokens.of(tokenizer), tokenizer.pad_token_id).eval()


def context(world: Path, name: str, folder: Path, batch: int = 3) -> EvalContext:
    config = Stage1Config(
        output=str(folder),
        tokenizer=str(world / "tokenizer"),
        image_size=32,
        max_text=LENGTH,
        caption=CaptionConfig(beam=3, max_new_tokens=LENGTH),
        eval=RetrievalEvalConfig(batch=batch),
    )
    tokenizer = load_tokenizer(world / "tokenizer")
    return EvalContext(
        ShardSet(world / name),
        "captions",
        tokenizer,
        config,
        folder / "predictions",
        Progress(),
        folder / "figures" / "step",
    )


@torch.no_grad()
def run(world: Path, name: str, folder: Path, batch: int = 3) -> tuple[dict, list]:
    """Figures, and the words of the examples that were drawn."""
    figures = evaluate_captions(make_task(world).model, context(world, name, folder, batch))
    return figures, [json.loads(path.read_text()) for path in sorted((folder / "figures").glob("*.json"))]


def _rank(rank: int, world_size: int, world: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    figures, _ = run(world, "set", folder / "two", batch=2)
    torch.save(figures, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, list]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, *run(world, "set", folder)


def test_rows_are_the_beams_of_each_image_beside_its_references(world, alone):
    folder, figures, examples = alone
    rows = list(read_predictions(folder / "predictions/captions.jsonl"))
    assert [row["image_id"] for row in rows] == list(range(34, 41))
    task, shards, tokenizer = make_task(world), ShardSet(world / "set"), load_tokenizer(world / "tokenizer")
    for row in rows:
        sample = shards.read(row["position"])
        image = CaptionEvalSample(ImageTransform(32))(sample, "captions", 0, np.random.default_rng(0))["images"][None]
        with torch.no_grad():
            state = task.model.backbone.image_tail(task.model.image_prefix(image))
            (beams,) = beam_search(task.model, state, task.special_tokens, LENGTH + 1, 3)
        assert row["caption"] == " ".join(tokenizer.decode(beams[0].ids, skip_special_tokens=True).split())
        assert row["references"] == [caption["text"] for caption in sample.record["captions"]]
    assert len({row["caption"] for row in rows}) > 1
    written = json.loads((folder / "predictions/captions.json").read_text())
    assert written == [{"image_id": row["image_id"], "caption": row["caption"]} for row in rows]
    assert [example["caption"] for example in examples] == [
        row["caption"] for row in sorted(rows, key=lambda row: row["position"])
    ]
    assert set(figures) >= {"cider", "bleu_1", "bleu_4", "rouge_l", "constant_cider", "images"}


def test_figures_are_those_of_the_metric_and_the_constant_is_beside_them(alone):
    folder, figures, _ = alone
    rows = list(read_predictions(folder / "predictions/captions.jsonl"))
    references = {row["image_id"]: row["references"] for row in rows}
    expected = metrics.evaluate(rows, references)
    assert {name: figures[name.lower()] for name in expected} == expected
    assert figures["images"] == IMAGES
    truth = [[metrics.tokenize(text) for text in texts] for texts in references.values()]
    scores = np.array([cider_d([texts[0]] * IMAGES, truth) for texts in truth])
    others = (scores.sum(1) - np.diag(scores)) / (IMAGES - 1)  # a caption is not said of its own image
    assert figures["constant_cider"] == pytest.approx(others.max(), rel=1e-12)


@pytest.mark.parametrize("domain", ["", "near-domain"])
def test_the_coco_tools_change_no_figure(monkeypatch: pytest.MonkeyPatch, domain: str) -> None:
    """A machine with Java adds theirs under names of their own."""
    texts = {"a": ["a dog runs", "the dog"], "b": ["two cats", "cats sit"]}
    rows = [{"image_id": i, "caption": t[0], "references": t, "domain": domain} for i, t in texts.items()]
    monkeypatch.setattr(captioning, "coco_tools_missing", lambda: "no Java")
    alone = captioning.score(rows)
    theirs = {"Bleu_1": 0.25, "ROUGE_L": 0.5, "CIDEr": 9.0, "METEOR": 0.125}
    monkeypatch.setattr(captioning, "coco_tools_missing", lambda: None)
    monkeypatch.setattr(metrics, "_coco_metrics", lambda *_: theirs)
    beside = captioning.score(rows)
    assert {name: beside[name] for name in alone} == alone
    own = {name: value for name, value in beside.items() if name not in alone}
    added = {"coco_tools_bleu_1": 0.25, "coco_tools_rouge_l": 0.5, "coco_tools_cider": 9.0, "meteor": 0.125}
    assert own == added | ({f"{domain}/{name}": value for name, value in added.items()} if domain else {})


@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_size_changes_nothing(world, alone, tmp_path, batch):
    folder, figures, examples = alone
    assert run(world, "set", tmp_path, batch) == (figures, examples)
    assert (tmp_path / "predictions/captions.jsonl").read_text() == (
        folder / "predictions/captions.jsonl"
    ).read_text()


def test_two_ranks_change_nothing(world, alone, tmp_path):
    folder, figures, examples = alone
    mp.spawn(_rank, (2, world, tmp_path), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert found == [figures, figures]
    assert json.loads((tmp_path / "two/figures/step_00.json").read_text()) == examples[0]
    assert (tmp_path / "two/predictions/captions.json").read_text() == (
        folder / "predictions/captions.json"
    ).read_text()


def test_nocaps_is_scored_by_domain_and_as_a_whole(world, alone, tmp_path):
    figures, _ = run(world, "domains", tmp_path)
    rows = list(read_predictions(tmp_path / "predictions/captions.jsonl"))
    assert [row["image_id"] for row in rows] == list(range(34, 41))
    near = [row for row in rows if row["domain"] == "near-domain"]
    assert len(near) == 3
    expected = metrics.evaluate(near, {row["image_id"]: row["references"] for row in near})
    assert figures["near-domain/cider"] == expected["CIDEr"]
    assert figures["in-domain/bleu_1"] > 0
    assert figures["cider"] == alone[1]["cider"]


def test_a_set_without_references_is_only_described(world, alone, tmp_path):
    figures, examples = run(world, "test", tmp_path)
    assert figures == {"images": IMAGES}
    assert len(examples) == IMAGES
    written, scored = (
        json.loads((folder / "predictions/captions.json").read_text()) for folder in (tmp_path, alone[0])
    )
    assert written == scored


def test_servers_know_images_by_number():
    assert server_id("coco_391895") == 391895
    assert server_id("nocaps_17") == 17
    assert server_id("shapes_easy_val_0_3") == "shapes_easy_val_0_3"


# ---------------------------------------------------------------------------------------------- the training reward


def test_reward_is_cider_with_the_training_captions_frequencies_and_knows_an_end(world, tmp_path):
    tokenizer, recipe = load_tokenizer(world / "tokenizer"), CaptionConfig(objective="cider")
    reward = caption_reward(recipe, tokenizer, [ShardSet(world / "set")], tmp_path)
    scenes = [ShardSet(world / "set").record(i) for i in range(IMAGES)]
    texts = [[caption["text"] for caption in scene["captions"]] for scene in scenes]
    ended = [[f"{metrics.tokenize(text)} <eos>" for text in own] for own in texts]

    spoken = texts[3][0]
    ids = tokenizer(spoken, add_special_tokens=False)["input_ids"]
    captions = [Caption(ids, 0.0, True), Caption(ids, 0.0, False), Caption([], 0.0, True)]
    found = reward(captions, [texts[3]] * 3)
    plain = metrics.tokenize(spoken)
    expected = cider_d([f"{plain} <eos>", plain, "<eos>"], [ended[3]] * 3, DocumentFrequency.of(ended))
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    assert found[0] > found[1] > found[2]

    # A corpus without end special_tokens judges the words alone.
    bare = DocumentFrequency.of([[metrics.tokenize(text) for text in own] for own in texts])
    bare.save(tmp_path / "bare.json")
    given = CaptionConfig(objective="cider", document_frequency=str(tmp_path / "bare.json"))
    found = caption_reward(given, tokenizer, [], tmp_path)(captions[:2], [texts[3]] * 2)
    tokens = [[metrics.tokenize(text) for text in texts[3]]] * 2
    assert found.tolist() == pytest.approx(cider_d([plain] * 2, tokens, bare).tolist(), rel=1e-12)
    assert caption_reward(CaptionConfig(), tokenizer, [], tmp_path) is None


@pytest.mark.parametrize("content", [None, "{}", "no pickle"])
def test_bad_frequencies_are_one_line_that_names_the_key(world, tmp_path, content):
    path = tmp_path / ("df.p" if content == "no pickle" else "df.json")
    if content is not None:
        path.write_text(content)
    recipe = CaptionConfig(objective="cider", document_frequency=str(path))
    with pytest.raises(ConfigError, match=r"^caption\.document_frequency: .*df\.") as raised:
        caption_reward(recipe, load_tokenizer(world / "tokenizer"), [], tmp_path)
    assert "\n" not in str(raised.value)


def test_reward_reads_ids_and_not_marks(world):
    tokenizer = load_tokenizer(world / "tokenizer")
    marked = [tokenizer.bos_token_id, *tokenizer("a star", add_special_tokens=False)["input_ids"]]
    reward = CiderReward(tokenizer, DocumentFrequency({("a",): 2}, 9))
    assert reward([Caption(marked, 0.0, True)], [["a star"]])[0] > 0
