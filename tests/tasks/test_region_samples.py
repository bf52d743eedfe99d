"""Region samples against painted images: boxes must stay on what was painted, tokens must spell the phrase."""

import io
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import RobertaTokenizerFast

from fiber.data.convert.writer import write_dataset
from fiber.data.loader import make_loader
from fiber.data.order import MixedStream, Source
from fiber.data.prompts import PromptBuilder
from fiber.data.records import Sample, SetFacts
from fiber.data.samples.images import fitted
from fiber.data.shards import ShardSet
from fiber.errors import SampleFault, ShardError
from fiber.tasks.region_samples import RegionSample, check_set, clipped, collate_regions

TEXT = "a red cat. two dogs"
CAT, DOGS = [[2, 9]], [[11, 19]]


@pytest.fixture
def region(tokenizer: RobertaTokenizerFast) -> RegionSample:
    return RegionSample(PromptBuilder(tokenizer, 64), short_sides=(48, 64, 80), max_side=120)


def image(width: int, height: int, *boxes: list[float]) -> bytes:
    """Black, with a white rectangle (whole pixels) for each box."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[int(y0) : int(y1), int(x0) : int(x1)] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def sample(
    width: int = 96, height: int = 64, names: tuple[str, ...] = (), painted: tuple = (), **fields: Any
) -> Sample:
    facts = SetFacts("shards/here", names, {10 + i: i for i in range(len(names))})
    record = {"image_id": "i", "width": width, "height": height, "source": "test", **fields}
    return Sample("key", [("png", image(width, height, *painted))], record, facts)


def caption(text: str, *phrases: tuple[list, list[int]]) -> list[dict]:
    return [{"text": text, "phrases": [{"span": span, "boxes": boxes} for span, boxes in phrases]}]


def boxes(*corners: list[float], **fields: Any) -> list[dict]:
    return [{"box": list(box), **fields} for box in corners]


def to_caption(made: dict, row: torch.Tensor, tokenizer: RobertaTokenizerFast) -> str:
    return tokenizer.decode(made["prompt"].ids[row]).strip()


# ---------------------------------------------------------------------------------------------- images and boxes


def test_boxes_stay_on_the_painted_object(region: RegionSample) -> None:
    """Any drawn size and side, mirrored or not: the box is where the white pixels are."""
    seen = set()
    for (width, height), seed in itertools.product([(96, 64), (64, 96), (200, 60)], range(16)):
        box = [12.0, 20.0, 40.0, 50.0]
        painted = sample(width, height, painted=(box,), boxes=boxes(box), captions=caption(TEXT, (CAT, [0])))
        made = region(painted, "captions", 0, np.random.default_rng(seed))
        shape = made["image"].shape[1:]
        assert min(shape) in (48, 64, 80) or max(shape) == 120
        assert max(shape) <= 120
        rows, columns = np.nonzero(made["image"].float().mean(0).numpy() > 127)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(made["boxes"][0].numpy() - found).max() <= 1.0
        seen.add((tuple(shape), columns.min() > shape[1] - columns.max()))
    assert {mirrored for _, mirrored in seen} == {False, True}
    assert len({size for size, _ in seen}) == 3 + 3 + 1  # three sides, and the cap alone for the long one


def test_no_mirroring_where_the_caption_tells_sides(region: RegionSample) -> None:
    made = sample(boxes=boxes([0, 0, 10, 10]), captions=caption("a red cat left of two dogs", ([[2, 9]], [0])))
    assert {region(made, "captions", 0, np.random.default_rng(s))["boxes"][0, 0].item() for s in range(12)} == {0.0}


def test_upside_down_where_things_have_no_up(region: RegionSample) -> None:
    """Boxes with classes go with the pixels; captions, which may speak of above and below, stay as they are."""
    box = [12.0, 20.0, 40.0, 30.0]
    painted = sample(
        names=("cell",), painted=(box,), boxes=boxes(box, category=10), captions=caption(TEXT, (CAT, [0]))
    )
    turned = replace(region, vertical_flip=0.5)
    low: dict[str, set[bool]] = {}
    for field, seed in itertools.product(("boxes", "captions"), range(12)):
        made = turned(painted, field, 0, np.random.default_rng(seed))
        rows = made["image"].float().amax((0, 2)).gt(127).nonzero()
        found = [int(rows.min()), int(rows.max()) + 1]
        assert np.abs(made["boxes"][0, [1, 3]].numpy() - found).max() <= 1.0
        low.setdefault(field, set()).add(found[0] + found[1] > made["image"].shape[1])
    assert low == {"boxes": {False, True}, "captions": {False}}


def test_fitted_sizes_by_hand() -> None:
    assert fitted(640, 480, 800, 1333) == (1067, 800)
    assert fitted(480, 640, 800, 1333) == (800, 1067)
    assert fitted(1000, 400, 800, 1333) == (1333, 533)
    assert fitted(3000, 2, 64, 100) == (100, 1)


def test_all_chance_comes_from_the_generator(region: RegionSample) -> None:
    names = tuple(f"thing{i}" for i in range(20))
    made = sample(names=names, boxes=boxes([5, 5, 20, 30], category=12))
    first, second = (region(made, "boxes", 0, np.random.default_rng(3)) for _ in range(2))
    other = region(made, "boxes", 0, np.random.default_rng(4))
    assert first["prompt"].text == second["prompt"].text != other["prompt"].text
    assert torch.equal(first["boxes"], second["boxes"])
    assert torch.equal(first["image"], second["image"])


def test_an_image_of_another_size_than_its_record(region: RegionSample) -> None:
    made = sample(boxes=boxes([0, 0, 10, 10]), captions=caption(TEXT, (CAT, [0])))
    made.record["width"] = 97
    with pytest.raises(SampleFault, match=r"\(64, 96\) \(h, w\), its record says \(64, 97\)"):
        region(made, "captions", 0, np.random.default_rng(0))


# ---------------------------------------------------------------------------------------------- captions


def test_each_box_has_the_tokens_of_its_phrases(region: RegionSample, tokenizer: RobertaTokenizerFast) -> None:
    """Box 1 is named by two phrases: it answers to both. Phrases without boxes are left alone."""
    made = region(
        sample(
            boxes=boxes([0, 0, 9, 9], [20, 20, 40, 40], [50, 10, 60, 60]),
            captions=caption(TEXT, (CAT, [1]), (DOGS, [1, 2]), ([[0, 1]], [])),
        ),
        "captions",
        0,
        np.random.default_rng(0),
    )
    assert made["prompt"].text == TEXT
    assert [to_caption(made, row, tokenizer) for row in made["box_tokens"]] == ["red cat two dogs", "two dogs"]
    assert made["dropped"] == []


def test_captions_without_boxes_are_legal(region: RegionSample) -> None:
    for captions in ([{"text": TEXT}], caption(TEXT, (CAT, []))):
        made = region(sample(captions=captions), "captions", 0, np.random.default_rng(0))
        assert made["boxes"].shape == (0, 4)
        assert made["box_tokens"].shape == (0, 64)


def test_expressions_by_span_or_whole(region: RegionSample, tokenizer: RobertaTokenizerFast) -> None:
    expressions = [{"text": TEXT, "box": 1, "span": DOGS}, {"text": TEXT, "box": 0}]
    made = sample(boxes=boxes([0, 0, 9, 9], [20, 20, 40, 40]), expressions=expressions)
    first, second = (region(made, "expressions", n, np.random.default_rng(0)) for n in (0, 1))
    assert to_caption(first, first["box_tokens"][0], tokenizer) == "two dogs"
    assert to_caption(second, second["box_tokens"][0], tokenizer) == TEXT


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([10, 10, math.nan, 20], "box_not_finite"),
        ([10, 10, math.inf, 20], "box_not_finite"),
        ([10, 10, 20], "box_not_finite"),
        (["a", 0, 1, 1], "box_not_finite"),
        ([10, 10, 10, 20], "box_without_area"),
        ([30, 10, 20, 20], "box_without_area"),
        ([200, 10, 220, 20], "box_without_area"),
        ([-30, -30, -5, -5], "box_without_area"),
    ],
)
def test_unusable_boxes_are_dropped_and_counted(region: RegionSample, box: list, reason: str) -> None:
    made = sample(boxes=boxes([0, 0, 9, 9], box), captions=caption(TEXT, (CAT, [0, 1])))
    made = region(made, "captions", 0, np.random.default_rng(0))
    assert len(made["boxes"]) == len(made["box_tokens"]) == 1
    assert [tuple(fault) for fault in made["dropped"]] == [("shards/here", "key", reason)]


def test_boxes_over_the_edge_are_cut() -> None:
    assert clipped([-5, 60, 500, 70], 96, 64) == ([0, 60, 96, 64], "")


def test_phrases_beyond_the_text_are_counted(tokenizer: RobertaTokenizerFast) -> None:
    """A span outside its caption, and a phrase that the token limit cuts off."""
    text = "a red cat. " * 20 + "two dogs"
    last = [[len(text) - 8, len(text)]]
    phrases = (CAT, [0]), (last, [1]), ([[5, len(text) + 1]], [0, 1]), ([[-4, 2]], [0])
    made = sample(boxes=boxes([0, 0, 9, 9], [20, 20, 30, 30]), captions=caption(text, *phrases))
    made = RegionSample(PromptBuilder(tokenizer, 16), short_sides=(64,), max_side=96)(
        made, "captions", 0, np.random.default_rng(0)
    )
    assert len(made["boxes"]) == 1
    assert [fault.reason for fault in made["dropped"]] == ["phrase_beyond_text_limit"] + ["span_outside_text"] * 3


def test_a_phrase_of_boxes_that_do_not_exist(region: RegionSample) -> None:
    made = sample(boxes=boxes([0, 0, 9, 9]), captions=caption(TEXT, (CAT, [3])))
    with pytest.raises(SampleFault, match="box 3 is not among the record's 1 boxes"):
        region(made, "captions", 0, np.random.default_rng(0))


# ---------------------------------------------------------------------------------------------- class labels


def test_labels_become_a_caption(region: RegionSample, tokenizer: RobertaTokenizerFast) -> None:
    labelled = [
        {"box": [0, 0, 9, 9], "category": 12},
        {"box": [20, 20, 40, 40], "category": 10},
        {"box": [20, 20, 41, 41], "category": 12},
        {"box": [0, 0, 96, 64], "category": 11, "crowd": True},
        {"box": [1, 1, 5, 5], "category": 99},
    ]
    made = sample(names=("red_cat", "mob", "traffic light (old)", "dog"), boxes=labelled)
    made = region(made, "boxes", 0, np.random.default_rng(1))
    names = [to_caption(made, row, tokenizer) for row in made["box_tokens"]]
    assert names == ["traffic light", "red cat", "traffic light"]
    assert all(name in made["prompt"].text for name in names)
    assert [fault.reason for fault in made["dropped"]] == ["unknown_category"]


def test_one_class_and_an_image_without_any(region: RegionSample) -> None:
    made = region(sample(names=("cat",), boxes=[]), "boxes", 0, np.random.default_rng(0))
    assert made["prompt"].text == "cat"
    assert made["boxes"].shape == (0, 4)
    with pytest.raises(SampleFault, match="neither a positive nor a negative"):
        region(sample(names=("cat",), boxes=[], negative_categories=[]), "boxes", 0, np.random.default_rng(0))


def test_negatives_are_those_the_record_lists(region: RegionSample) -> None:
    names = tuple(f"thing{i}" for i in range(30))
    made = sample(names=names, boxes=boxes([5, 5, 20, 30], category=12), negative_categories=[13, 17])
    asked = {
        name
        for s in range(20)
        for name in region(made, "boxes", 0, np.random.default_rng(s))["prompt"].text.split(". ")
    }
    assert asked == {"thing2", "thing3", "thing7"}


def test_all_classes_in_order(tokenizer: RobertaTokenizerFast) -> None:
    """What evaluation asks for, whatever is in the image; every set of a mix has its own names."""
    region = RegionSample(PromptBuilder(tokenizer, 64), short_sides=(48,), max_side=120, classes="all")
    names = ("dog", "traffic_light (red)", "cat")
    pair = boxes([5, 5, 20, 30], category=12) + boxes([30, 5, 60, 30], category=11)
    first = region(sample(names=names, boxes=pair), "boxes", 0, np.random.default_rng(0))
    (asked,) = region.builder.chunks(names)
    assert first["prompt"].text == asked.text == "dog. traffic light. cat"
    assert torch.equal(first["box_tokens"], asked.token_map[[2, 1]])
    second = sample(names=("cat", "owl"), boxes=[], negative_categories=[10])
    second.facts = replace(second.facts, path="shards/there")
    assert region(second, "boxes", 0, np.random.default_rng(1))["prompt"].text == "cat. owl"
    assert region(sample(names=names, boxes=[]), "boxes", 0, np.random.default_rng(2))["prompt"].text == asked.text


def test_thirteen_hundred_classes(region: RegionSample, tokenizer: RobertaTokenizerFast) -> None:
    """The caption holds what fits; every box kept spells its class, every other one is counted."""
    names = tuple(f"thing{i}" for i in range(1300))
    made = sample(names=names, boxes=[{"box": [0, 0, 9, 9], "category": 10 + 13 * i} for i in range(100)])
    made = region(made, "boxes", 0, np.random.default_rng(0))
    kept = [to_caption(made, row, tokenizer) for row in made["box_tokens"]]
    assert 3 < len(kept) < 30
    assert set(kept) <= {f"thing{13 * i}" for i in range(100)}
    assert [fault.reason for fault in made["dropped"]] == ["class_beyond_text_limit"] * (100 - len(kept))
    assert int(made["prompt"].mask.sum()) <= 64


# ---------------------------------------------------------------------------------------------- batches and sets


def test_collate_pads_and_packs(region: RegionSample) -> None:
    first = sample(96, 64, painted=([0, 0, 96, 64],), boxes=boxes([0, 0, 9, 9], [9, 9, 20, 20]))
    first.record["captions"] = caption(TEXT, (CAT, [0]), (DOGS, [1]))
    empty = sample(40, 90, painted=([0, 0, 40, 90],), captions=[{"text": "two dogs"}])
    made = [region(s, "captions", 0, np.random.default_rng(2)) for s in (empty, first, first)]
    batch = collate_regions(made)
    assert batch["images"].shape[2] % 32 == batch["images"].shape[3] % 32 == 0
    assert batch["sizes"].tolist() == [list(m["image"].shape[1:]) for m in made]
    for image, (height, width) in zip(batch["images"], batch["sizes"].tolist(), strict=True):
        assert (image[:, :height, :width] == 255).all()
        assert image.long().sum() == 255 * 3 * height * width
    assert batch["box_image"].tolist() == [1, 1, 2, 2]
    length = len(region.builder.tokenizer(TEXT)["input_ids"])
    assert batch["ids"].shape == batch["mask"].shape == (3, length)
    assert batch["box_tokens"].shape == (4, length)
    assert batch["box_tokens"].any(1).all()


def test_a_batch_without_boxes(region: RegionSample) -> None:
    made = [region(sample(captions=[{"text": TEXT}]), "captions", 0, np.random.default_rng(0))] * 2
    batch = collate_regions(made)
    assert batch["boxes"].shape == (0, 4)
    assert batch["box_image"].shape == (0,)


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    """A detection set of cats and one of dogs, both under category id 1, and captions without phrases."""
    folders = []
    for name in ("cat", "dog", "plain"):
        fields = {"captions": [{"text": TEXT}]} if name == "plain" else {"boxes": boxes([1, 2, 30, 40], category=1)}
        samples = [sample(**fields) for _ in range(6)]
        for number, one in enumerate(samples):
            one.key = str(number)
        categories = None if name == "plain" else [{"id": 1, "name": name}]
        about = {"name": name, "split": "train", "provenance": "painted", "licence": "none"}
        write_dataset(samples, tmp_path / name, categories=categories, **about)
        folders.append(tmp_path / name)
    return folders


@pytest.mark.parametrize("workers", [0, 2])
def test_sets_mix_by_weight_each_with_its_own_names(sets: list[Path], region: RegionSample, workers: int) -> None:
    mix = [Source(ShardSet(sets[0]), "boxes", 3.0), Source(ShardSet(sets[1]), "boxes", 1.0)]
    loader = make_loader(
        MixedStream(mix, seed=0, global_batch=40), region, collate_regions, micro_batch=40, workers=workers
    )
    texts = [text for batch in itertools.islice(loader, 5) for text in batch["texts"]]
    assert set(texts) == {"cat", "dog"}
    assert texts.count("cat") / len(texts) == pytest.approx(0.75, abs=0.08)


def test_sets_with_nothing_to_learn_are_refused(sets: list[Path], region: RegionSample) -> None:
    with pytest.raises(ShardError, match="lists no categories"):
        check_set(ShardSet(sets[2]), "boxes")
    with pytest.raises(ShardError, match="no phrases with boxes"):
        check_set(ShardSet(sets[2]), "captions")
    check_set(ShardSet(sets[0]), "boxes")
    many = ShardSet(sets[0])
    many.facts = replace(many.facts, names=tuple(f"thing{i}" for i in range(30)))
    check_set(many, "boxes")
    with pytest.raises(ShardError, match=r"regions.classes: all of .*30 classes has .* tokens, the text limit is 64"):
        check_set(many, "boxes", region.builder)
