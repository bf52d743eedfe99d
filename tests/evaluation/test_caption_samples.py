"""Samples of captioning from shards of drawn scenes."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import RobertaTokenizerFast

from fiber.data.convert.plain_pickle import load_plain
from fiber.data.convert.writer import ShardWriter
from fiber.data.records import Sample
from fiber.data.samples.text import ImageTransform
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shapes.world import WORLDS, generate
from fiber.data.shards import ShardSet
from fiber.data.text import encode
from fiber.evaluation.caption_samples import CaptionEvalSample, RewardSample, all_texts
from fiber.images.resize import load_image


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> RobertaTokenizerFast:
    return train_bpe(["a red star, two shapes on the left"], 280, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def scenes() -> list[Sample]:
    """Five scenes; the second says nothing of sides, the third has no captions, the fourth a blank one."""
    scenes = list(generate(WORLDS["easy"], "val", 5, seed=0))
    scenes[1].record["captions"] = [{"text": "a red star"}, {"text": "two shapes"}]
    del scenes[2].record["captions"]
    scenes[3].record["captions"].append({"text": " "})
    return scenes


def test_reward_sample_brings_all_captions_and_draws_of_its_own(scenes, tokenizer):
    make = RewardSample(tokenizer, ImageTransform(32, augmented=True), 12, captions=2, tokens=5)
    made = [make(scenes[1], "captions", 1, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    ids, mask = encode(tokenizer, "two shapes", 12)
    assert made[0]["text"] == "two shapes"
    assert np.array_equal(made[0]["ids"], ids)
    assert np.array_equal(made[0]["mask"], mask)
    assert made[0]["references"] == ["a red star", "two shapes"]
    assert made[0]["draws"].shape == (2, 5)
    assert ((made[0]["draws"] >= 0) & (made[0]["draws"] < 1)).all()
    assert np.array_equal(made[0]["draws"], made[1]["draws"])
    assert torch.equal(made[0]["images"], made[1]["images"])
    assert not np.array_equal(made[0]["draws"], made[2]["draws"])


def test_an_image_is_mirrored_only_where_no_caption_speaks_of_sides(scenes, tokenizer):
    """The augmentation's random numbers are the same; only the rule differs."""
    told = Sample(scenes[1].key, scenes[1].images, dict(scenes[1].record))
    told.record["captions"] = [{"text": "a red star"}, {"text": "the star on the left"}]
    make = RewardSample(tokenizer, ImageTransform(32, augmented=True), 12, captions=1, tokens=1)
    free = RewardSample(tokenizer, ImageTransform(32, augmented=True, flip_sides=True), 12, captions=1, tokens=1)
    same, differ = 0, 0
    for seed in range(12):
        kept, mirrored = (s(told, "captions", 0, np.random.default_rng(seed))["images"] for s in (make, free))
        same += torch.equal(kept, mirrored)
        differ += not torch.equal(kept, mirrored)
        neutral = make(scenes[1], "captions", 0, np.random.default_rng(seed))["images"]
        assert torch.equal(neutral, mirrored)
    assert same
    assert differ


def test_images_come_with_what_is_said_of_them(scenes):
    make, rng = CaptionEvalSample(ImageTransform(32)), np.random.default_rng(0)
    scenes[0].record["domain"] = "near-domain"
    made = make(scenes[0], "captions", 0, rng)
    assert torch.equal(made["images"], load_image(scenes[0].images[0][1], 32))
    assert made["image"] == scenes[0].record["image_id"]
    assert made["references"] == [caption["text"] for caption in scenes[0].record["captions"]]
    assert made["domain"] == "near-domain"
    bare = make(scenes[2], "captions", 0, rng)
    assert (bare["references"], bare["domain"]) == ([], "")


def test_all_texts_leave_out_what_is_not_said(scenes, tmp_path: Path):
    with ShardWriter(tmp_path, "set") as writer:
        for scene in scenes:
            writer.add(scene)
    found = list(all_texts([ShardSet(tmp_path)] * 2))
    assert len(found) == 8
    assert found[1] == ["a red star", "two shapes"]
    assert found[2] == [caption["text"] for caption in scenes[3].record["captions"][:-1]]


def test_pickles_build_plain_data_and_nothing_else(tmp_path: Path):
    path = tmp_path / "data.p"
    plain = {("a", "b"): [1, 2.5, None, True], "text": "ü"}
    for protocol in range(5):
        path.write_bytes(pickle.dumps(plain, protocol))
        assert load_plain(path) == plain
    for harm in (Path, print, np.float64(1.0)):
        path.write_bytes(pickle.dumps([harm]))
        with pytest.raises(ValueError, match=r"data\.p: not a pickle of plain data: it wants to build"):
            load_plain(path)
    path.write_bytes(pickle.dumps(plain)[:-3])
    with pytest.raises(ValueError, match="not a pickle of plain data"):
        load_plain(path)


@pytest.mark.parametrize("damage", [{"captions": [{"text": 5}]}, {"captions": [{}]}, {"captions": ["a"]}])
def test_a_damaged_record_does_not_end_a_reward_run(scenes, tmp_path: Path, damage: dict):
    """All captions are read before its first step: such a record has none, and training counts it."""
    with ShardWriter(tmp_path, "s") as writer:
        for number, scene in enumerate(scenes[:2]):
            record = scene.record if number else scene.record | damage
            writer.add(Sample(scene.key, scene.images, record))
    assert list(all_texts([ShardSet(tmp_path)])) == [["a red star", "two shapes"]]
