"""Visual words under masking: against one plain forward a word, over shards of the shapes world."""

import pytest
import torch

from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.coarse.mlm import IGNORED
from fiber.coarse.model import CoarseModel
from fiber.config.base import ImageTowerConfig, ModelConfig, TextTowerConfig
from fiber.data.convert.writer import write_dataset
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shapes.world import WORLDS, generate, swap_relation, visual_words, vocabulary_texts
from fiber.data.shards import ShardSet
from fiber.evaluation.retrieval import evaluate_retrieval, retrieval_sets
from fiber.evaluation.visual_words import evaluate_visual_words, masked_words

SCENES, SIZE, LENGTH = 6, 32, 32
WORLD = WORLDS["easy"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A tokenizer and shards of a few scenes."""
    folder = tmp_path_factory.mktemp("shapes")
    tokenizer = train_bpe(vocabulary_texts(WORLD, 20), 400, folder / "tokenizer")
    samples = generate(WORLD, "test", SCENES, seed=3)
    write_dataset(samples, folder / "test", name="test", split="test", provenance="generated", licence="MIT")
    return tokenizer, ShardSet(folder / "test")


def make_model(vocabulary: int) -> CoarseModel:
    config = ModelConfig(
        image=ImageTowerConfig(embed_dim=8, depths=(1, 2), heads=(1, 2), window=4),
        text=TextTowerConfig(width=16, layers=3, heads=2, intermediate=32),
        num_fused=2,
        head_width=12,
    )
    model = CoarseModel(build_backbone(config, vocabulary, 1, LENGTH), head_width=12, vocab_size=vocabulary)
    initialise(model, "fan_in", 0)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.7)
    return model.eval()


def batch_of(tokenizer, text: str) -> dict:
    encoded = tokenizer(text, padding="max_length", max_length=LENGTH, return_tensors="pt")
    return {"text": [text], "ids": encoded.input_ids, "mask": encoded.attention_mask} | {
        "position": torch.tensor([4]),
        "image_id": torch.tensor([9]),
    }


def test_each_occurrence_is_masked_alone_with_all_its_tokens(sets):
    tokenizer, _ = sets
    text = "a turquoise circle left of a red circle"  # the first word is not in the vocabulary: several tokens
    batch = batch_of(tokenizer, text)
    groups = {"colour": ["red", "turquoise"], "shape": ["circle"], "relation": ["left"]}
    ids, mask, labels, group, image_id = masked_words([batch], tokenizer, groups, torch.device("cpu"))
    words = [tokenizer.decode(row[row != IGNORED]).strip() for row in labels]
    assert words == ["turquoise", "circle", "left", "red", "circle"]
    assert (labels[0] != IGNORED).sum() > 1
    assert group.tolist() == [0, 1, 2, 0, 1]
    assert image_id.tolist() == [9] * 5
    assert torch.equal(ids == tokenizer.mask_token_id, labels != IGNORED)
    assert torch.equal(torch.where(labels != IGNORED, labels, ids), batch["ids"].expand(5, -1))
    assert torch.equal(mask, batch["mask"].expand(5, -1))


def test_parts_of_words_do_not_count_and_no_word_at_all_is_an_error(sets):
    tokenizer, _ = sets
    batch = batch_of(tokenizer, "a scared leftover")
    with pytest.raises(ValueError, match="has a word of colour, relation"):
        masked_words([batch], tokenizer, {"colour": ["red"], "relation": ["left"]}, torch.device("cpu"))


def test_accuracies_equal_one_forward_a_word(sets):
    tokenizer, shards = sets
    model, groups = make_model(len(tokenizer)), visual_words(WORLD)
    images, texts = retrieval_sets(shards, tokenizer, SIZE, LENGTH, batch=4)
    answers = [label for batch in texts for label in batch["ids"].flatten().tolist()]
    model.heads.mlm.decoder.bias.data[max(set(answers) - {0, 1, 2}, key=answers.count)] += 1  # some words are right
    found = evaluate_visual_words(model, images, texts, tokenizer, groups, batch=7)

    pixels = torch.cat([batch["images"] for batch in images])
    image_id = torch.cat([batch["image_id"] for batch in images])
    ids, mask, labels, group, owner = masked_words(texts, tokenizer, groups, torch.device("cpu"))
    right = {"true_image": [], "wrong_image": []}
    with torch.no_grad():
        for k in range(len(ids)):
            row = int((image_id == owner[k]).nonzero())
            for name, r in (("true_image", row), ("wrong_image", (row + 1) % SCENES)):
                image = model.image_prefix(pixels[r : r + 1])
                fused = model.fuse(image, model.text_prefix(ids[k : k + 1], mask[k : k + 1]))
                predicted = model.heads.mlm(fused.text[0]).argmax(-1)
                where = labels[k] != IGNORED
                right[name].append(bool((predicted[where] == labels[k][where]).all()))
    assert found["words"] == len(ids)
    for name, hits in right.items():
        assert found[name] == pytest.approx(sum(hits) / len(hits))
        for i, kind in enumerate(groups):
            chosen = [hit for hit, g in zip(hits, group.tolist(), strict=True) if g == i]
            assert found["by_group"][kind][name] == pytest.approx(sum(chosen) / len(chosen))
    assert 0 < found["true_image"] < 1


def test_retrieval_over_shards_takes_every_image_and_caption_once_with_swapped_relations(sets):
    tokenizer, shards = sets
    images, texts = retrieval_sets(shards, tokenizer, SIZE, LENGTH, batch=4, swap=swap_relation)
    assert len(images) == len(list(images)) == -(-SCENES // 4)
    assert len(texts) == len(list(texts)) == -(-shards.count("captions") // 4)
    for batch in texts:
        for text, swapped, mask in zip(batch["text"], batch["swapped_ids"], batch["swapped_mask"], strict=True):
            if "left" in text or "right" in text or "above" in text or "below" in text:
                assert tokenizer.decode(swapped[mask == 1], skip_special_tokens=True) == swap_relation(text)
            else:
                assert not mask.any()
    found = evaluate_retrieval(make_model(len(tokenizer)), images, texts, rerank_k=3, batch=8).figures
    assert (found["images"], found["texts"]) == (SCENES, shards.count("captions"))
    assert 0 < found["swap_count"] <= found["texts"]
