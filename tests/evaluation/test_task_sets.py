"""Whole-set evaluation of the image-level tasks: the same figures and files for any number of ranks and any batch."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from fiber.config.base import ImageTowerConfig, ModelConfig, SourceConfig, TextTowerConfig
from fiber.config.stage1 import ImageTextDataConfig, RetrievalEvalConfig, Stage1Config
from fiber.data.convert.writer import write_dataset
from fiber.data.records import LABELS, Sample
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shapes.world import WORLDS, answers, generate, generate_pairs
from fiber.data.shards import ShardSet
from fiber.data.text import load_tokenizer
from fiber.evaluation.metrics import vqa_accuracy as vqa
from fiber.evaluation.retrieval import HITS
from fiber.tasks.table import TABLE, task_of

SCENES, PAIRS = 9, 12
TASKS = ("vqa", "nlvr2", "entailment", "retrieval_itc", "retrieval_itm")
FILES = {
    "vqa": ("vqa.jsonl", "vqa_submission.json"),
    "nlvr2": ("nlvr2.jsonl",),
    "entailment": ("entailment.jsonl",),
    "retrieval_itc": ("image_to_text.json", "text_to_image.json"),
    "retrieval_itm": ("image_to_text.json", "text_to_image.json"),
}
MODEL = ModelConfig(
    image=ImageTowerConfig(embed_dim=8, depths=(1, 2), heads=(1, 2), window=8, drop_path=0.0),
    text=TextTowerConfig(width=16, layers=3, heads=2, intermediate=32, dropout=0.0),
    num_fused=2,
    head_width=12,
    init="fan_in",
)


FIELD_OF = {row.name: row.fields[0] for row in TABLE}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with scenes, pairs, the questions of the scenes without answers, and a tokenizer."""
    folder, world = tmp_path_factory.mktemp("sets"), WORLDS["easy"]
    about = {"split": "val", "provenance": "drawn", "licence": "none"}
    scenes = list(generate(world, "val", SCENES, seed=0))
    write_dataset(scenes, folder / "scenes", name="scenes", answers=answers(world), **about)
    write_dataset(generate_pairs(world, "val", PAIRS, seed=0), folder / "pairs", name="pairs", **about)
    hidden = []
    for scene in scenes:
        asked = [{"id": q["id"], "question": q["question"]} for q in scene.record["questions"]]
        hidden.append(Sample(scene.key, scene.images, scene.record | {"questions": asked}))
    write_dataset(hidden, folder / "test", name="scenes", answers=answers(world), **about | {"split": "test"})
    train_bpe([c["text"] for s in scenes for c in s.record["captions"]], 320, folder / "tokenizer")
    return folder


def make_config(task: str, sets: Path, output: Path, batch: int = 7) -> Stage1Config:
    source = SourceConfig(str(sets / ("pairs" if task == "nlvr2" else "scenes")), FIELD_OF[task])
    return Stage1Config(
        output=str(output),
        tokenizer=str(sets / "tokenizer"),
        task=task,
        image_size=64,
        max_text=16,
        model=MODEL,
        data=ImageTextDataConfig(train=(source,), workers=0),
        eval=RetrievalEvalConfig(data=(source,), batch=batch, rerank_k=4),
    )


def make_task(config: Stage1Config) -> nn.Module:
    task = task_of(config).build_module(config, load_tokenizer(config.tokenizer))
    for name, parameter in task.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.6)
    return task


def run(config: Stage1Config, task: nn.Module | None = None, step: int = 3) -> dict[str, float]:
    found = [(ShardSet(source.path), source.field) for source in config.eval.data]
    module = task or make_task(config)
    return task_of(config).evaluate(config, load_tokenizer(config.tokenizer), module, found, step, lambda: None)


def contents(config: Stage1Config) -> dict[str, str]:
    return {name: (Path(config.output) / "predictions" / name).read_text() for name in FILES[config.task]}


def _rank(rank: int, world: int, sets: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    figures = {task: run(make_config(task, Path(sets), Path(folder) / task)) for task in TASKS}
    torch.save(figures, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (2, str(sets), str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_ranks_and_batch_size_change_nothing(task: str, sets: Path, two_ranks: Path, tmp_path: Path) -> None:
    configs = {batch: make_config(task, sets, tmp_path / str(batch), batch) for batch in (1, 7)}
    alone = {batch: run(config) for batch, config in configs.items()}
    for rank in range(2):
        figures = torch.load(two_ranks / f"{rank}.pt")[task]
        assert figures == pytest.approx(alone[7], abs=1e-6)
    one = {name: value for name, value in alone[1].items() if name != "itm_loss"}  # negatives are drawn in batches
    assert one == pytest.approx({name: alone[7][name] for name in one}, abs=1e-6)
    by_two = contents(make_config(task, sets, two_ranks / task))
    if task.startswith("retrieval"):
        for name, text in contents(configs[7]).items():
            for found, expected in zip(json.loads(by_two[name]), json.loads(text), strict=True):
                assert without_scores(found) == without_scores(expected)
    else:
        assert contents(configs[7]) == contents(configs[1]) == by_two


def without_scores(row: dict) -> dict:
    hits = "texts" if "texts" in row else "images"
    return row | {hits: [{name: value for name, value in hit.items() if name != "score"} for hit in row[hits]]}


def test_vqa_accuracy_is_the_official_one_beside_what_words_alone_can_have(sets: Path, tmp_path: Path) -> None:
    config = make_config("vqa", sets, tmp_path)
    figures, task = run(config), make_task(config)
    asked = [q for i in range(SCENES) for q in ShardSet(sets / "scenes").record(i)["questions"]]
    rows = {row["question_id"]: row["answer"] for row in map(json.loads, contents(config)["vqa.jsonl"].splitlines())}
    assert rows.keys() == {q["id"] for q in asked}
    assert set(rows.values()) <= set(task.answers)
    scores = {q["id"]: vqa.question_accuracy(rows[q["id"]], q["raw_answers"]) for q in asked}
    assert figures["accuracy"] == pytest.approx(np.mean(list(scores.values())))
    for kind in ("yes/no", "number", "other"):
        own = [scores[q["id"]] for q in asked if q["answer_type"] == kind]
        assert figures[f"accuracy_{kind.replace('/', '_')}"] == pytest.approx(np.mean(own))
    constants = {
        answer: np.mean([vqa.question_accuracy(answer, q["raw_answers"]) for q in asked]) for answer in task.answers
    }
    assert figures["majority_accuracy"] == pytest.approx(max(constants.values()))
    assert figures["majority_accuracy"] <= figures["type_majority_accuracy"] < 1
    submission = json.loads(contents(config)["vqa_submission.json"])
    assert submission == [{"question_id": key, "answer": rows[key]} for key in sorted(rows)]


def test_questions_without_answers_are_only_predicted(sets: Path, tmp_path: Path) -> None:
    config = make_config("vqa", sets, tmp_path)
    hidden = SourceConfig(str(sets / "test"), "questions")
    both = replace(config, eval=replace(config.eval, data=(config.eval.data[0], hidden)))
    figures = run(both)  # two splits of one set keep their figures and files apart
    assert figures["scenes_test/questions"] == ShardSet(sets / "test").count("questions")
    assert "scenes_test/accuracy" not in figures
    assert figures["scenes_val/accuracy"] == run(config)["accuracy"]
    predictions = tmp_path / "predictions"
    files = [json.loads((predictions / n / "vqa_submission.json").read_text()) for n in ("scenes_val", "scenes_test")]
    assert files[0] == files[1]


@pytest.mark.parametrize("task", ["nlvr2", "entailment"])
def test_accuracy_counts_the_rows_that_agree(task: str, sets: Path, tmp_path: Path) -> None:
    config = make_config(task, sets, tmp_path)
    figures = run(config)
    shards = ShardSet(config.eval.data[0].path)
    gold = [a["label"] for i in range(len(shards)) for a in shards.record(i)[FIELD_OF[task]]]
    rows = [json.loads(line) for line in contents(config)[f"{task}.jsonl"].splitlines()]
    rows.sort(key=lambda row: row["position"])
    right = [row["label"] == label for row, label in zip(rows, gold, strict=True)]
    assert figures["accuracy"] == pytest.approx(np.mean(right))
    assert figures["majority_accuracy"] == max(Counter(gold).values()) / len(gold)
    if task == "entailment":
        for name in LABELS:
            own = [r for r, label in zip(right, gold, strict=True) if label == name]
            assert figures[f"accuracy_{name}"] == pytest.approx(np.mean(own))
    else:
        sentences: dict[str, bool] = {}
        for row, ok in zip(rows, right, strict=True):
            split, number, _, sentence = row["id"].split("-")
            key = f"{split}-{number}-{sentence}"
            sentences[key] = sentences.get(key, True) and ok
        assert figures["consistency"] == pytest.approx(np.mean(list(sentences.values())))


def test_hits_are_the_texts_and_images_that_recall_counts(sets: Path, tmp_path: Path) -> None:
    config = make_config("retrieval_itm", sets, tmp_path)
    figures = run(config)
    files = {name: json.loads(text) for name, text in contents(config).items()}
    by_image, by_text = files["image_to_text.json"], files["text_to_image.json"]
    assert len(by_image) == SCENES
    for k in (1, 5):
        own = [any(hit["own"] for hit in row["texts"][:k]) for row in by_image]
        assert figures[f"reranked_i2t_r{k}"] == pytest.approx(np.mean(own))
        there = [row["image_id"] in [hit["image_id"] for hit in row["images"][:k]] for row in by_text]
        assert figures[f"reranked_t2i_r{k}"] == pytest.approx(np.mean(there))
        assert figures[f"reranked_i2t_r{k}"] == pytest.approx(np.mean([row["rank"] < k for row in by_image]))
        assert figures[f"reranked_t2i_r{k}"] == pytest.approx(np.mean([row["rank"] < k for row in by_text]))
    assert all(len(row["texts"]) == HITS for row in by_image)
    assert figures["chance_t2i_r1"] == pytest.approx(1 / SCENES)


@pytest.mark.parametrize("task", TASKS)
def test_examples_are_drawn_with_their_words_and_the_mode_comes_back(task: str, sets: Path, tmp_path: Path) -> None:
    config = make_config(task, sets, tmp_path)
    model = make_task(config).train()
    run(config, model, step=12)
    assert model.training
    name = "pairs" if task == "nlvr2" else "scenes"
    images = sorted((tmp_path / "figures").glob("*.png"))
    assert [path.stem for path in images] == [f"step_000012_{name}_{i:02d}" for i in range(8)]
    words = [json.loads(path.with_suffix(".json").read_text()) for path in images]
    columns = {
        "vqa": {"question", "answers", "prediction"},
        "nlvr2": {"statement", "truth", "prediction"},
        "entailment": {"hypothesis", "label", "prediction"},
    }.get(task, {f"hit {i}" for i in range(1, 6)})
    assert all(set(own) == columns for own in words)
