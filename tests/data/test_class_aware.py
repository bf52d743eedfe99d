"""Class-aware sampling: every class as often as any other, every image of it in turn, any position by itself."""

import itertools
import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_sets import jpeg

from fiber.config.base import DataConfig, SourceConfig, TrainConfig
from fiber.config.stage2 import Stage2Config, validate_stage2
from fiber.data.convert.writer import ShardWriter, write_dataset
from fiber.data.loader import make_loader
from fiber.data.order import MixedStream, Source
from fiber.data.records import Sample
from fiber.data.shards import ShardSet
from fiber.errors import ConfigError, ShardError

RARE, COMMON, UNUSED, CROWDED = 4, 9, 11, 12
NAMES = {RARE: "unicorn", COMMON: "person", UNUSED: "nothing", CROWDED: "crowd"}


@pytest.fixture
def boxes(tmp_path: Path) -> ShardSet:
    """Thirty images with persons, three with unicorns (one of them with both), two without anything."""

    def made(number: int) -> Sample:
        labels = [RARE] * 2 if number in (3, 31) else [COMMON, RARE, COMMON] if number == 17 else [COMMON]
        labels = [] if number in (30, 32) else labels
        found = [{"box": [0, 0, 9, 9 + i], "category": label} for i, label in enumerate(labels)]
        if number == 5:
            found.append({"box": [0, 0, 30, 20], "category": CROWDED, "crowd": True})
        record = {"image_id": f"i{number}", "width": 30, "height": 20, "source": "test", "boxes": found}
        return Sample(f"s{number:02d}", [("jpg", jpeg(number))], record)

    about = {"name": "set", "split": "train", "provenance": "", "licence": "", "max_samples": 7}
    categories = [{"id": key, "name": name} for key, name in NAMES.items()]
    write_dataset(map(made, range(33)), tmp_path / "boxes", **about, categories=categories)
    return ShardSet(tmp_path / "boxes")


def stream(boxes: ShardSet, seed: int = 3, weight: float = 1.0, sampling: Any = "class_aware") -> MixedStream:
    source = Source(boxes, "boxes", weight, sampling=sampling)
    return MixedStream([source], seed=seed, global_batch=4)


PERSONS = {n for n in range(30) if n != 3}
UNICORNS = {3, 17, 31}


def test_classes_take_turns_and_so_do_their_images(boxes: ShardSet) -> None:
    drawn = [stream(boxes).item(p) for p in range(2 * 29 * 3)]
    turns = [drawn[i : i + 2] for i in range(0, len(drawn), 2)]
    visits: dict[str, list[int]] = defaultdict(list)
    for turn in turns:  # each has one of both classes; the image with both may stand for either
        samples = [item.sample for item in turn]
        rare = next(s for s in samples if s in UNICORNS - {17} or (s == 17 and set(samples) - {17} <= PERSONS))
        visits["rare"].append(rare)
        samples.remove(rare)
        visits["common"] += samples
    assert len(visits["rare"]) == len(visits["common"]) == 87
    for name, images in (("rare", UNICORNS), ("common", PERSONS)):
        for start in range(0, 87, len(images)):
            assert set(visits[name][start : start + len(images)]) == images  # all, before any comes again
    orders = {tuple(visits["rare"][i : i + 3]) for i in range(0, 87, 3)}
    assert len(orders) == 6  # of three images, all there are
    assert len({tuple(item.sample in UNICORNS for item in turn) for turn in turns}) >= 2


def test_every_position_by_itself(boxes: ShardSet) -> None:
    whole = [stream(boxes).item(p) for p in range(300)]
    assert whole == [stream(boxes).item(p) for p in reversed(range(300))][::-1]
    assert stream(boxes).item(10**12) == stream(boxes).item(10**12)
    assert whole != [stream(boxes, seed=4).item(p) for p in range(300)]
    for position in range(40):  # a substitute is another draw of the same kind
        assert stream(boxes).item(position, 1) == stream(boxes).item(position + 5)


def test_a_run_goes_on_where_it_stopped_on_any_number_of_ranks(boxes: ShardSet) -> None:
    def take(sample: Sample, field: str, annotation: int, rng: np.random.Generator) -> dict:
        return {"chance": torch.tensor(rng.random())}

    def collate(samples: list[dict]) -> dict:
        return {"chance": torch.stack([sample["chance"] for sample in samples])}

    def keys(steps: int, **options: Any) -> list[list[str]]:
        loader = make_loader(stream(boxes), take, collate, **options)
        return [batch["keys"] for batch in itertools.islice(loader, steps)]

    whole = keys(6, micro_batch=4)
    assert keys(3, micro_batch=4, start_step=3) == whole[3:]
    ranks = [keys(6, micro_batch=2, rank=rank, world=2, workers=1) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    saved = stream(boxes).state(3)
    assert stream(boxes).resume(saved) == 3
    with pytest.raises(ShardError, match="shards, sources or window changed"):
        stream(boxes, sampling="each").resume(saved)


def test_other_sources_keep_their_share(boxes: ShardSet) -> None:
    sources = [Source(boxes, "boxes", 3.0, sampling="class_aware"), Source(boxes, "boxes", 1.0)]
    mixed = MixedStream(sources, seed=0, global_batch=4)
    count = Counter(mixed.item(p).source for p in range(4096))
    assert count == {0: 3072, 1: 1024}
    rare = sum(mixed.item(p).sample in UNICORNS for p in range(4096) if mixed.item(p).source == 0)
    assert 0.5 <= rare / 3072 < 0.54  # half of the turns, and the image with both in some of the others
    plain = MixedStream([Source(boxes, "boxes", 1.0)], seed=0, global_batch=4)
    assert plain.fingerprint == MixedStream([sources[1]], seed=0, global_batch=4).fingerprint


def test_a_set_without_classes_is_refused(boxes: ShardSet) -> None:
    empty = boxes.view("empty")
    empty.facts = type(boxes.facts)(str(boxes.path))
    with pytest.raises(ShardError, match="no boxes with classes to sample by"):
        stream(empty)


def test_the_key_needs_boxes_and_weights() -> None:
    """As a run's configuration says it; without them nothing could be drawn by classes."""
    cases = (({"weight": 1.0, "field": "boxes"}, True), ({"weight": 1.0}, False), ({"field": "boxes"}, False))
    for fields, right in cases:
        source = SourceConfig(path="pipe:cat", sampling="class_aware", **fields)
        config = Stage2Config(output="x", tokenizer="x", data=DataConfig(train=(source,)))
        config = replace(config, train=TrainConfig(global_batch=64))
        if right:
            validate_stage2(config, 1)
            continue
        with pytest.raises(ConfigError, match=r"data.train.0.sampling: class_aware needs field boxes and a weight"):
            validate_stage2(config, 1)

    source = SourceConfig(path="pipe:cat", sampling="with_boxes", field="captions")
    config = replace(config, data=DataConfig(train=(source,)))
    with pytest.raises(ConfigError, match="with_boxes needs field boxes, not captions"):
        validate_stage2(config, 1)


def test_images_without_boxes_are_left_out(boxes: ShardSet) -> None:
    """The release's detection sets leave them out in training; an epoch walks all others, crowds included."""
    source = Source(boxes, "boxes", sampling="with_boxes")
    walk = MixedStream([source], seed=3, global_batch=1)
    assert sorted(walk.item(p).sample for p in range(walk.epoch_length)) == sorted(set(range(33)) - {30, 32})
    assert MixedStream([replace(source, sampling="each")], seed=3, global_batch=1).epoch_length == 33


@pytest.mark.parametrize(
    "damage", [[{"box": [0, 0, 9, 9], "category": [RARE]}], [["box", "category"]], "category", {"category": 1}, None]
)
def test_a_damaged_record_does_not_end_the_run(boxes: ShardSet, tmp_path: Path, damage: Any) -> None:
    """Its image stands at no position; the others take turns as before. The index may count it all the same."""
    folder = tmp_path / "damaged"
    with ShardWriter(folder, "set") as writer:
        for number in (0, 3, 17):
            sample = boxes.read(number)
            writer.add(sample if number else replace(sample, record=sample.record | {"boxes": damage}))
    (folder / "dataset.json").write_text(json.dumps(boxes.info))
    source = Source(ShardSet(folder), "boxes", 1.0, sampling="class_aware")
    source.counts = np.ones(3, np.int32)
    mixed = MixedStream([source], seed=3, global_batch=4)
    assert {mixed.item(position).sample for position in range(20)} == {1, 2}
