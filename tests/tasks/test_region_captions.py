"""What captions of region samples name beside what is in the image: the recipes of LVIS, ODinW and of negatives."""

import io
import json
from collections import Counter
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pytest
from PIL import Image
from transformers import RobertaTokenizerFast

from fiber.data.convert.writer import write_dataset
from fiber.data.prompts import PromptBuilder, in_context
from fiber.data.records import Record, Sample, SetFacts, clean_name
from fiber.data.shards import ShardSet
from fiber.errors import SampleFault
from fiber.evaluation.absent import PhraseBank, content_words
from fiber.tasks.region_samples import RegionSample


def image(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


# ---------------------------------------------------------------------------------------------- LVIS


@pytest.fixture(scope="module")
def lvis(shared: Path) -> tuple[SetFacts, list[Record]]:
    """The facts and records of a real slice of LVIS; images shrunk fourfold."""
    data = json.loads((shared / "real/lvis/lvis_val_100.json").read_text())
    records: dict[int, Record] = {}
    for entry in data["images"]:
        size = {"width": entry["width"] // 4, "height": entry["height"] // 4}
        listed = {"negative_categories": entry["neg_category_ids"], "boxes": []}
        records[entry["id"]] = {"image_id": f"coco_{entry['id']}", "source": "lvis", **size, **listed}
    for entry in data["annotations"]:
        x, y, width, height = (side / 4 for side in entry["bbox"])
        box = {"box": [x, y, x + width, y + height], "category": entry["category_id"]}
        records[entry["image_id"]]["boxes"].append(box)
    return SetFacts.of("lvis", data["categories"]), list(records.values())


def test_lvis_captions_name_as_many_absent_classes_as_fit(lvis: tuple[SetFacts, list[Record]], shared: Path) -> None:
    facts, records = lvis
    assert (len(facts.names), len(records)) == (1230, 100)  # version 0.5; version 1 has 1,203
    tokenizer = RobertaTokenizerFast.from_pretrained(shared / "real/roberta_tokenizer")
    region = RegionSample(PromptBuilder(tokenizer, 256), short_sides=(32,), max_side=64, most_negatives=True)
    longest = max(len(tokenizer(f" {clean_name(name)}.")["input_ids"]) for name in facts.names)
    counts, dropped = [], Counter()
    for number, record in enumerate(records):
        sample = Sample("k", [("png", image(record["width"], record["height"]))], record, facts)
        made = region(sample, "boxes", 0, np.random.default_rng(number))
        dropped.update(fault.reason for fault in made["dropped"])
        prompt = made["prompt"]
        present = {facts.index[box["category"]] for box in record["boxes"]}
        named = set(prompt.classes) - present
        counts.append(len(named))
        assert len(made["boxes"]) + len(made["dropped"]) == len(record["boxes"])
        assert len(named) <= 85
        if len(named) < 85:  # then there is no room: 256 less than the longest name
            assert 256 - int(prompt.mask.sum()) <= longest
    print(f"LVIS: absent classes per caption: median {median(counts)}, mean {fmean(counts):.1f}, least {min(counts)}")
    print(f"85 of them in {counts.count(85)} of {len(counts)} captions; boxes dropped: {dict(dropped)}")
    assert median(counts) == 85
    assert fmean(counts) > 80
    assert dropped.total() == 0


def test_lvis_pre_training_draws_from_the_list_of_the_image(
    lvis: tuple[SetFacts, list[Record]], tokenizer: RobertaTokenizerFast
) -> None:
    """Four images of the slice have neither a class nor a listed absent one: nothing to ask for."""
    facts, records = lvis
    region = RegionSample(PromptBuilder(tokenizer, 256), short_sides=(32,), max_side=64)
    bare = [r for r in records if not r["boxes"] and not r["negative_categories"]]
    assert len(bare) == 4
    with pytest.raises(SampleFault, match="neither a positive nor a negative"):
        region(Sample("k", [], bare[0], facts), "boxes", 0, np.random.default_rng(0))


# ---------------------------------------------------------------------------------------------- order, contexts


def labelled(names: tuple[str, ...], *classes: int) -> Sample:
    facts = SetFacts("here", names, {i: i for i in range(len(names))})
    found = [{"box": [0, 0, 30 + i, 30], "category": label} for i, label in enumerate(classes)]
    record = {"image_id": "i", "width": 64, "height": 64, "source": "test", "boxes": found}
    return Sample("k", [("png", image(64, 64))], record, facts)


def test_all_classes_in_a_new_order_for_each_sample(tokenizer: RobertaTokenizerFast) -> None:
    names = ("dog", "traffic light", "cat", "circle")
    whole = {"short_sides": (64,), "max_side": 64, "classes": "all"}
    fixed = RegionSample(PromptBuilder(tokenizer, 64), **whole)
    shuffled = RegionSample(PromptBuilder(tokenizer, 64), **whole, shuffle=True)
    texts = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        assert fixed(labelled(names, 2, 1), "boxes", 0, rng)["prompt"].text == "dog. traffic light. cat. circle"
        made = shuffled(labelled(names, 2, 1), "boxes", 0, np.random.default_rng(seed))
        texts.add(made["prompt"].text)
        assert sorted(made["prompt"].text.split(". ")) == sorted(names)
        spelled = [tokenizer.decode(made["prompt"].ids[row]).strip() for row in made["box_tokens"]]
        assert spelled == ["cat", "traffic light"]
    assert len(texts) > 15  # of 24


def test_a_class_in_context_owns_its_words_alone(tokenizer: RobertaTokenizerFast) -> None:
    """In training and in inference, at any place; the costs that pack prompts count the context."""
    names = ("[cat], which is red", "dog", "a square with [two_circles (old)]")
    builder = PromptBuilder(tokenizer, 64)
    (asked,) = builder.chunks(names)
    assert asked.text == "cat, which is red. dog. a square with two circles"
    trained = RegionSample(builder, short_sides=(64,), max_side=64, max_negatives=2)
    made = trained(labelled(names, 0, 2), "boxes", 0, np.random.default_rng(0))
    prompts = [(asked, asked.token_map[[0, 2]]), (made["prompt"], made["box_tokens"])]
    for prompt, rows in prompts:
        assert [tokenizer.decode(prompt.ids[row]).strip() for row in rows] == ["cat", "two circles"]
    assert in_context("a [b] [c]") == ("", "a [b] [c]", "")  # nothing marked: two marks are none
    many = [f"the [dog {i}] with a red square and two circles" for i in range(30)]
    assert [c for prompt in builder.chunks(many) for c in prompt.classes] == list(range(30))


# ---------------------------------------------------------------------------------------------- absent phrases


CAPTIONS = {
    "dog": "A dog near two red buses.",
    "puppies": "puppies on a bus",
    "woman": "a woman eats soup",
    "people": "people with an umbrella",
    "horse": "a horse",
}


@pytest.fixture
def captions(tmp_path: Path) -> ShardSet:
    """One image a caption, whose phrases are its runs between small words."""
    spans = {
        "dog": [[0, 5], [11, 24]],
        "puppies": [[0, 7], [11, 16]],
        "woman": [[0, 7], [13, 17]],
        "people": [[0, 6], [12, 23]],
        "horse": [[0, 7]],
    }
    made = []
    for name, text in CAPTIONS.items():
        phrases = [{"span": [span], "boxes": [0]} for span in spans[name]]
        box = {"box": [0, 0, 32, 32], **({"category": 7} if name == "horse" else {})}
        record = {"image_id": name, "width": 64, "height": 64, "source": "test", "boxes": [box]}
        record["captions"] = [{"text": text, "phrases": phrases}]
        made.append(Sample(name, [("png", image(64, 64))], record))
    about = {"name": "set", "split": "train", "provenance": "", "licence": ""}
    write_dataset(made, tmp_path / "set", **about, categories=[{"id": 7, "name": "soup_bowl"}])
    return ShardSet(tmp_path / "set")


def test_absent_phrases_share_no_word_with_the_image(captions: ShardSet) -> None:
    bank = PhraseBank(captions, "captions")
    absent = [set(bank.absent_phrases(captions.record(i), 99, np.random.default_rng(0))) for i in range(5)]
    # "buses" and "bus" are one word, and so are "woman" and "people"; the horse's image has a bowl with soup.
    assert absent[0] == {"puppies", "a woman", "soup", "people", "an umbrella", "a horse"}
    assert absent[1] == {"A dog", "a woman", "soup", "people", "an umbrella", "a horse"}
    assert absent[2] == {"A dog", "two red buses", "puppies", "a bus", "an umbrella", "a horse"}
    assert absent[4] == {"A dog", "two red buses", "puppies", "a bus", "a woman", "people", "an umbrella"}
    drawn = [bank.absent_phrases(captions.record(0), 2, np.random.default_rng(seed)) for seed in range(20)]
    assert all(len(set(phrases)) == 2 for phrases in drawn)
    assert len({tuple(phrases) for phrases in drawn}) > 5
    assert drawn[3] == bank.absent_phrases(captions.record(0), 2, np.random.default_rng(3))
    others = {bank.other_text(captions.record(1), np.random.default_rng(seed)) for seed in range(40)}
    assert others == {CAPTIONS[name] for name in ("woman", "people", "horse")}
    assert content_words("Puppies, buses & a GLASS") == content_words("puppy bus the glasses")


def test_negatives_of_grounding_captions(captions: ShardSet, tokenizer: RobertaTokenizerFast) -> None:
    """Behind the caption, so that its own phrases keep their words; in its place, no box has any."""
    sample, words = captions.read(0), {"short_sides": (64,), "max_side": 64}
    builder = PromptBuilder(tokenizer, 64)
    plain = RegionSample(builder, **words)(sample, "captions", 0, np.random.default_rng(5))
    region = RegionSample(builder, **words, absent_phrases=2)
    made = region(sample, "captions", 0, np.random.default_rng(5))
    assert made["prompt"].text.startswith(CAPTIONS["dog"] + " ")
    first, second = made["prompt"].text.removeprefix(CAPTIONS["dog"] + " ").split(". ")
    assert {first, second} <= {"puppies", "a woman", "soup", "people", "an umbrella", "a horse"}
    assert np.array_equal(made["box_tokens"], plain["box_tokens"])
    other = RegionSample(builder, **words, other_caption=0.5)
    drawn = [other(sample, "captions", 0, np.random.default_rng(seed)) for seed in range(40)]
    empty = [made for made in drawn if made["prompt"].text != CAPTIONS["dog"]]
    assert 8 < len(empty) < 32
    assert all(made["boxes"].shape == (0, 4) and made["box_tokens"].shape == (0, 64) for made in empty)
    assert {made["prompt"].text for made in empty} == {CAPTIONS[n] for n in ("woman", "people", "horse")}
    assert sum(len(made["boxes"]) for made in drawn) == 40 - len(empty)
