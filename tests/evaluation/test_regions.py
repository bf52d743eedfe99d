"""Evaluation over shards: an oracle scores full marks through every change of coordinates, and a real detector scores
the same for any batch size and number of ranks."""

import io
import json
import os
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image, ImageColor
from torch import Tensor, nn

from fiber.backbone.build import build_backbone
from fiber.cli.launcher import free_port
from fiber.config.base import ImageTowerConfig, ModelConfig, TextTowerConfig
from fiber.data.convert.writer import ShardWriter, write_dataset
from fiber.data.prompts import PromptBuilder
from fiber.data.records import Sample
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shapes.world import WORLDS, categories, generate, vocabulary_texts
from fiber.data.shards import ShardSet
from fiber.data.text import load_tokenizer
from fiber.errors import DataFaultError, ShardError
from fiber.evaluation.figures import draw_predictions
from fiber.evaluation.predictions import rank_file, read_predictions
from fiber.evaluation.progress import Progress
from fiber.evaluation.region_images import EvalImage
from fiber.evaluation.regions import evaluate_regions, questions, write_predictions
from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import Detections
from fiber.images.draw import COLOURS

ABOUT = {"split": "test", "provenance": "painted", "licence": "none"}
NAMES = ("cat", "dog", "traffic light")
SIZES = [(100, 60), (60, 100), (64, 64), (200, 50), (90, 61)]


# ---------------------------------------------------------------------------------------------- the oracle


def painted(number: int, size: tuple[int, int]) -> Sample:
    """One grey value per image, by which the oracle knows it; a box for each name, places differing by image."""
    stream = io.BytesIO()
    Image.new("RGB", size, (10 * number + 5,) * 3).save(stream, "PNG")
    width, height = size
    corners = [[1 + i * width / 4, 2 + 3 * number, 12 + i * width / 4, height - 3] for i in range(3)]
    text = "a dog left of a cat. some traffic light"
    phrases = [
        {"span": [[2, 5]], "boxes": [1]},
        {"span": [[16, 19]], "boxes": [0]},
        {"span": [[21, 25]], "boxes": []},
    ]
    other = [{"span": [[0, 13]], "boxes": [2]}]
    record = {
        "image_id": f"p{number}",
        "width": width,
        "height": height,
        "source": "test",
        "boxes": [{"box": box, "category": 7 - i} for i, box in enumerate(corners)],
        "captions": [{"text": text, "phrases": phrases}, {"text": "traffic light", "phrases": other}],
        "expressions": [{"text": "the dog", "box": 1}, {"text": "on a cat", "box": 0, "span": [[3, 8]]}],
    }
    return Sample(f"p{number}", [("png", stream.getvalue())], record)


class Oracle(nn.Module):
    """Knows every image by its grey value and finds what a prompt's phrase names, after a worse wrong box."""

    def __init__(self, samples: list[Sample]) -> None:
        super().__init__()
        self.samples = samples
        self.weight = nn.Parameter(torch.zeros(1))

    def encode_prompts(self, prompts: list) -> None:
        """Needs no preparation."""

    def detect(self, images: Tensor, sizes: Tensor, prompts: list, selection: Any, **_: Any) -> list[Detections]:
        results = []
        for image, size, own in zip(images, sizes.tolist(), prompts, strict=True):
            record = self.samples[int(image[0, 0, 0]) // 10].record
            assert (image[:, : size[0], : size[1]] == image[0, 0, 0]).all()
            assert image.shape[1] - size[0] < 32
            assert image.shape[2] - size[1] < 32
            scale = torch.tensor([size[1] / record["width"], size[0] / record["height"]] * 2)
            boxes, scores, labels = [], [], []
            for prompt in own:
                for spans, label in zip(prompt.spans, prompt.classes, strict=True):
                    word = prompt.text[slice(*spans[0])].removeprefix("the ").removeprefix("a ")
                    boxes += [record["boxes"][NAMES.index(word)]["box"], [0.0, 0.0, 3.0, 3.0]]
                    scores += [0.9 + 0.01 * label, 0.1 + 0.01 * label]
                    labels += [label, label]
            order = torch.tensor(scores).argsort(descending=True)
            found = torch.tensor(boxes)[order] * scale
            results.append(Detections(found, torch.tensor(scores)[order], torch.tensor(labels)[order]))
        return results


class Blind(Oracle):
    """Finds nothing."""

    def __init__(self) -> None:
        super().__init__([])

    def detect(self, images: Tensor, *_: Any, **__: Any) -> list[Detections]:
        nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        return [nothing] * len(images)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe([*vocabulary_texts(WORLDS["easy"], 40), "a cat, a dog. some traffic light"], 420, folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, list[Sample]]:
    samples = [painted(number, size) for number, size in enumerate(SIZES)]
    folder = tmp_path_factory.mktemp("painted")
    write_dataset(
        samples, folder, name="painted", categories=[{"id": 7 - i, "name": n} for i, n in enumerate(NAMES)], **ABOUT
    )
    return ShardSet(folder), samples


@pytest.mark.parametrize(("short", "longest"), [(50, 400), (96, 128), (33, 70)])
def test_an_oracle_scores_full_marks(
    images: tuple, tokenizer: Path, tmp_path: Path, short: int, longest: int
) -> None:
    shards, samples = images
    builder, oracle = PromptBuilder(load_tokenizer(tokenizer), 48), Oracle(samples)

    def figures(field: str) -> dict[str, float]:
        image = EvalImage(short, longest)
        return evaluate_regions(oracle, builder, shards, field, image, folder=tmp_path, batch=4)

    phrases = figures("captions")
    assert [phrases[f"{p}_r{k}"] for p in ("grounding", "merged") for k in (1, 5, 10)] == [1.0] * 6
    assert phrases["class_agnostic_r1"] == pytest.approx((0.5 + 0.5 + 1.0) / 3)  # two boxes to choose from, then one
    referring = figures("expressions")
    assert (referring["referring_p1"], referring["referring_giou_p1"]) == (1.0, 1.0)
    assert figures("boxes")["ap"] == pytest.approx(1.0)
    rows = [json.loads(line) for line in (tmp_path / "painted_captions.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * len(SIZES)
    box = next(row["boxes"][0] for row in rows if row["image_id"] == "p3" and row["phrase"] == row["caption"] == 0)
    assert box == pytest.approx(samples[3].record["boxes"][1]["box"], abs=0.02)


def test_phrases_beyond_the_text_limit_are_misses(images: tuple, tokenizer: Path, tmp_path: Path) -> None:
    """Of the three phrases of an image the last of the first caption is cut off; nothing crashes, nothing is left
    out of the count."""
    shards, samples = images
    builder = PromptBuilder(load_tokenizer(tokenizer), 8)
    assert not builder.sentence(samples[0].record["captions"][0]["text"], [[(16, 19)]]).token_map.any()
    found = evaluate_regions(Oracle(samples), builder, shards, "captions", EvalImage(64, 128), folder=tmp_path)
    assert found["grounding_r1"] == found["grounding_upper_bound"] == pytest.approx(2 / 3)


# ---------------------------------------------------------------------------------------------- a real detector


def detector(vocab: int) -> FiberDetector:
    """Random weights, open gates, no dropout; biased to fire."""
    torch.manual_seed(0)
    config = ModelConfig(
        image=ImageTowerConfig(embed_dim=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4), window=4, drop_path=0.0),
        text=TextTowerConfig(width=16, layers=3, heads=2, intermediate=32, dropout=0.0),
        num_fused=2,
    )
    small = {"channels": 16, "head_channels": 16, "head_blocks": 2, "groups": 4, "drop_block": 0.0}
    levels = {"anchor_sizes": (24, 48, 96), "strides": (8, 16, 32), "text_limit": 48}
    model = FiberDetector(build_backbone(config, vocab, 1, 48, fine=True), **small, **levels)
    with torch.no_grad():
        model.head.bias += 4
        model.head.project_text.weight *= 20
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.5)
    return model


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes at four sizes, so that neighbours in a batch are padded differently."""
    folder, samples = tmp_path_factory.mktemp("scenes"), []
    for number, one in enumerate(generate(WORLDS["easy"], "test", 6, seed=0)):
        width, height = [(64, 64), (96, 64), (64, 130), (40, 64)][number % 4]
        image = Image.open(io.BytesIO(one.images[0][1])).resize((width, height))
        stream = io.BytesIO()
        image.save(stream, "PNG")
        for box in one.record["boxes"]:
            box["box"] = (np.array(box["box"]) * np.array([width, height, width, height]) / 64).tolist()
        one.record |= {"width": width, "height": height}
        samples.append(Sample(one.key, [("png", stream.getvalue())], one.record))
    write_dataset(samples, folder, name="scenes", categories=categories(WORLDS["easy"]), **ABOUT)
    return folder


def everything(scenes: Path, tokenizer: Path, folder: Path, batch: int) -> dict[str, float]:
    words = load_tokenizer(tokenizer)
    model, builder, shards = detector(len(words)), PromptBuilder(words, 48), ShardSet(scenes)
    found: dict[str, float] = {}
    for field in ("captions", "expressions", "boxes"):
        found |= evaluate_regions(model, builder, shards, field, EvalImage(64, 128), folder=folder, batch=batch)
    assert model.training
    return found


def _rank(rank: int, port: int, scenes: Path, tokenizer: Path, folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = everything(scenes, tokenizer, folder, batch=2)
    (folder / f"figures{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_figures_do_not_depend_on_ranks_and_batches(scenes: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Batches of 1, of 5, and of 2 on two gloo processes: the same boxes to a hundredth of a pixel and figures."""
    alone = everything(scenes, tokenizer, tmp_path / "alone", batch=1)
    assert alone["grounding_upper_bound"] > 0
    assert len((tmp_path / "alone" / "scenes_boxes.jsonl").read_text().splitlines()) > 100
    together = everything(scenes, tokenizer, tmp_path / "together", batch=5)
    port = free_port()
    ranks = tmp_path / "ranks"
    ranks.mkdir()
    mp.spawn(_rank, (port, scenes, tokenizer, ranks), nprocs=2)
    for rank in range(2):
        assert json.loads((ranks / f"figures{rank}.json").read_text()) == pytest.approx(alone, abs=1e-9)
    assert together == pytest.approx(alone, abs=1e-9)
    for other in ("together", "ranks"):
        assert_same_detections(tmp_path / other / "scenes_boxes.jsonl", tmp_path / "alone" / "scenes_boxes.jsonl")
    for name in ("scenes_captions", "scenes_expressions"):
        expected = [json.loads(line) for line in (tmp_path / "alone" / f"{name}.jsonl").read_text().splitlines()]
        for other in ("together", "ranks"):
            found = [json.loads(line) for line in (tmp_path / other / f"{name}.jsonl").read_text().splitlines()]
            assert len(found) == len(expected)
            for row, wanted in zip(found, expected, strict=True):
                assert np.allclose(row.pop("boxes"), wanted["boxes"], atol=0.011)
                assert row.items() <= wanted.items()


def assert_same_detections(path: Path, expected: Path) -> None:
    """Of each image and class the same boxes to a hundredth of a pixel, the same scores to 1e-5."""
    found, wanted = (defaultdict(list) for _ in range(2))
    for file, groups in ((path, found), (expected, wanted)):
        for row in read_predictions(file):
            groups[row["image_id"], row["category_id"]].append([row["score"], *row["bbox"]])
    assert found.keys() == wanted.keys()
    for key, rows in wanted.items():
        assert len(rows) == len(found[key])
        assert np.allclose(np.array(rows)[:, 0], np.array(found[key])[:, 0], atol=1e-5)
        assert np.allclose(rows, found[key], atol=0.021)


def test_classes_are_asked_by_id_in_chunks_and_a_long_tail_without_a_limit_an_image(
    images: tuple, scenes: Path, tokenizer: Path
) -> None:
    builder, (shards, _) = PromptBuilder(load_tokenizer(tokenizer), 48), images
    whole, ones = questions(shards, "boxes", builder), questions(shards, "boxes", builder, chunk_classes=1)
    assert whole.ids == [5, 6, 7]
    assert [p.text for p in whole.prompts_of_set] == ["traffic light. dog. cat"]
    assert [p.text for p in ones.prompts_of_set] == ["traffic light", "dog", "cat"]
    assert (whole.selection.keep, whole.keep) == (100, 100)
    tail = questions(ShardSet(scenes), "boxes", builder)  # its categories have a frequency
    assert (tail.selection.keep, tail.keep) == (300, None)


class Crowd(Oracle):
    """Finds `each` random boxes for everything that is asked."""

    def __init__(self, samples: list[Sample], each: int = 100) -> None:
        super().__init__(samples)
        self.each = each

    def detect(self, images: Tensor, sizes: Tensor, prompts: list, selection: Any, **_: Any) -> list[Detections]:
        results = []
        for _, own in zip(images, prompts, strict=True):
            labels = torch.tensor([label for prompt in own for label in prompt.classes]).repeat(self.each)
            corners = torch.rand(len(labels), 2) * 30
            boxes = torch.cat([corners, corners + 1 + torch.rand(len(labels), 2) * 30], 1)
            results.append(Detections(boxes, torch.linspace(1, 0.4, len(labels)), labels))
        return results


def test_the_memory_of_predicting_does_not_grow_with_the_set(tokenizer: Path, tmp_path: Path) -> None:
    builder = PromptBuilder(load_tokenizer(tokenizer), 48)
    peaks, written = [], []
    for count in (16, 160):
        samples = [painted(number % 10, (40, 40)) for number in range(count)]
        for number, sample in enumerate(samples):
            sample.key = sample.record["image_id"] = f"p{number}"
        write_dataset(samples, tmp_path / str(count), name="many", **ABOUT)
        shards = ShardSet(tmp_path / str(count))
        asked = questions(shards, "expressions", builder)
        counts = []
        tracemalloc.start()
        write_predictions(
            Crowd(samples), shards, "expressions", asked, EvalImage(40, 40), tmp_path, 4, 0,
            Progress(beat=lambda counts=counts: counts.append(1)),
        )  # fmt: skip
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(counts) == count / 4
        written.append(rank_file(tmp_path, "many_expressions", 0, 1).stat().st_size)
    assert peaks[1] - peaks[0] < 0.2 * (written[1] - written[0])


def test_a_thousand_classes_stay_readable(tokenizer: Path, tmp_path: Path) -> None:
    """Of 120,000 detections the figure shows thirty, and names no more classes than they and the truth have."""
    classes = [{"id": i, "name": f"thing {i}"} for i in range(1, 1204)]
    samples = [painted(0, (100, 60))]
    write_dataset(samples, tmp_path / "many", name="many", categories=classes, **ABOUT)
    asked = (
        PromptBuilder(load_tokenizer(tokenizer), 256),
        ShardSet(tmp_path / "many"),
        "boxes",
        EvalImage(60, 99),
    )
    (figure,) = draw_predictions(Crowd(samples), *asked, count=1, chunk_classes=40)
    assert figure.width == 320
    assert figure.height < 2 * 320


@pytest.mark.parametrize("field", ["captions", "expressions", "boxes"])
def test_drawn_examples(images: tuple, tokenizer: Path, field: str) -> None:
    """Evenly spaced over the set; every phrase has its colour."""
    shards, samples = images
    asked = (PromptBuilder(load_tokenizer(tokenizer), 48), shards, field, EvalImage(64, 128))
    drawn = draw_predictions(Oracle(samples), *asked, count=3)
    assert [figure.width for figure in drawn] == [320, 320, 320]
    assert len(draw_predictions(Oracle(samples), *asked, count=30)) == len(samples)
    figure = np.asarray(drawn[0])
    colours = [np.array(ImageColor.getrgb(c)) for c in COLOURS[: 2 if field != "expressions" else 1]]
    assert all((figure == colour).all(-1).sum() > 100 for colour in colours)


# ---------------------------------------------------------------------------------------------- damaged sets


def with_one_changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> tuple[ShardSet, list[Sample]]:
    """The painted set, the record of its fourth image changed, whatever the schema says."""
    samples = [painted(number, size) for number, size in enumerate(SIZES)]
    change(samples[3].record)
    with ShardWriter(folder, "painted", max_samples=10) as writer:
        for sample in samples:
            writer.add(sample)
    about = {"name": "painted", "categories": [{"id": 7 - i, "name": n} for i, n in enumerate(NAMES)]}
    (folder / "dataset.json").write_text(json.dumps(about))
    return ShardSet(folder), samples


def _phrase(record: dict[str, Any]) -> dict[str, Any]:
    return record["captions"][0]["phrases"][0]


DAMAGE: dict[str, tuple[str, str, Callable[[dict[str, Any]], Any]]] = {
    "a box index of a phrase": ("captions", "bad_index", lambda r: _phrase(r).update(boxes=[77])),
    "a span": ("captions", "bad_span", lambda r: _phrase(r).update(span="ab")),
    "a box index": ("expressions", "bad_index", lambda r: r["expressions"][1].update(box=99)),
    "an id": ("expressions", "bad_id", lambda r: r["expressions"][0].update(id=[1])),
    "a category": ("boxes", "bad_category", lambda r: r["boxes"][1].update(category=999)),
    "a listed category": ("boxes", "bad_category", lambda r: r.update(negative_categories=[999])),
    "three numbers": ("boxes", "bad_box", lambda r: r["boxes"][1].update(box=[1, 2, 3])),
    "an area": ("boxes", "bad_box", lambda r: r["boxes"][1].update(area="large")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_one_bad_annotation_ends_in_a_line(damage: str, tokenizer: Path, tmp_path: Path) -> None:
    """Whatever part of a record it is that only scoring or drawing would have met: the shard, the key, the reason."""
    field, reason, change = DAMAGE[damage]
    shards, samples = with_one_changed(tmp_path / "set", change)
    asked = (PromptBuilder(load_tokenizer(tokenizer), 48), shards, field, EvalImage(64, 128))
    with pytest.raises(DataFaultError) as error:
        evaluate_regions(Oracle(samples), *asked, folder=tmp_path, batch=2)
    assert "painted-000000.tar, key 'p3': " + reason in str(error.value)
    with pytest.raises(ShardError, match=r"painted-000000\.tar, key 'p3': "):
        draw_predictions(Oracle(samples), *asked, count=30)


def test_a_phrase_that_says_nothing_of_boxes_has_none(images: tuple, tokenizer: Path, tmp_path: Path) -> None:
    """As training takes it: it is not asked for."""
    builder, image = PromptBuilder(load_tokenizer(tokenizer), 48), EvalImage(64, 128)
    changed, samples = with_one_changed(tmp_path / "set", lambda r: r["captions"][0]["phrases"][2].pop("boxes"))
    found = evaluate_regions(Oracle(samples), builder, changed, "captions", image, folder=tmp_path / "a")
    assert found == evaluate_regions(Oracle(samples), builder, images[0], "captions", image, folder=tmp_path / "b")
    draw_predictions(Oracle(samples), builder, changed, "captions", image, count=30)


@pytest.mark.parametrize(
    ("field", "change", "said"),
    [
        ("boxes", lambda r: r.update(image_id="p0"), "image 'p0' comes twice; the set holds an image"),
        ("expressions", lambda r: r["expressions"][0].update(id=5), "texts and some numbers: write all in one way"),
    ],
)
def test_records_that_do_not_go_together_are_named(
    field: str, change: Callable, said: str, tokenizer: Path, tmp_path: Path
) -> None:
    shards, samples = with_one_changed(tmp_path / "set", change)
    asked = (PromptBuilder(load_tokenizer(tokenizer), 48), shards, field, EvalImage(64, 128))
    model = Blind() if field == "boxes" else Oracle(samples)
    with pytest.raises(ShardError, match=f"set: .*{said}"):
        evaluate_regions(model, *asked, folder=tmp_path)
