"""Retrieval recall against the recorded rule of the reference code, brute force and hand-made ties."""

import json

import numpy as np
import pytest

from fiber.evaluation.metrics.retrieval_recall import retrieval_recall


def test_equals_the_reference_rule(shared):
    data = json.loads((shared / "real/retrieval_synthetic/scores_and_expected.json").read_text())
    scores = np.array(data["scores_image_by_text"])
    recall = retrieval_recall(scores, range(len(scores)), data["txt2img"])
    names = {"i2t": "tr", "t2i": "ir"}
    for way, old in names.items():
        for k in (1, 5, 10):
            assert 100 * recall[f"{way}_r{k}"] == pytest.approx(data["expected_percent"][f"{old}_r{k}"], rel=1e-15)
    assert 100 * recall["r_mean"] == pytest.approx(np.mean(list(data["expected_percent"].values())), rel=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_sorting_with_ties_shuffled_ids_and_more_rows_than_a_block(dtype):
    rng = np.random.default_rng(3)
    images, texts = 300, 700
    ids = [f"image {i}" for i in rng.permutation(images)]
    owner = np.concatenate([np.arange(images), rng.integers(0, images, texts - images)])
    rng.shuffle(owner)
    scores = rng.integers(0, 12, (images, texts)).astype(dtype)  # ties everywhere
    scores[np.arange(texts) % images, np.arange(texts)] = -np.inf
    hits = {f"{way}_r{k}": [] for way in ("i2t", "t2i") for k in (2, 9)}
    for i in range(images):
        order = np.argsort(scores[i], kind="stable")[::-1]
        for k in (2, 9):
            hits[f"i2t_r{k}"].append(any(owner[j] == i for j in order[:k]))
    for j in range(texts):
        order = np.argsort(scores[:, j], kind="stable")[::-1]
        for k in (2, 9):
            hits[f"t2i_r{k}"].append(owner[j] in order[:k])
    recall = retrieval_recall(scores, ids, [ids[i] for i in owner], ks=(2, 9))
    assert {name: recall[name] for name in hits} == {name: np.mean(values) for name, values in hits.items()}


def test_equal_scores_rank_the_higher_index_first():
    recall = retrieval_recall(np.zeros((2, 3)), ["a", "b"], ["a", "b", "a"], ks=(1, 2))
    # best text of both images is the third, "a"'s; best image of all texts is "b"
    assert recall["i2t_r1"] == 1 / 2
    assert recall["i2t_r2"] == 1.0
    assert recall["t2i_r1"] == 1 / 3
    assert recall["t2i_r2"] == 1.0


@pytest.mark.parametrize(
    ("scores", "images", "texts", "message"),
    [
        (np.zeros((2, 2)), ["a", "b"], ["a"], r"scores \(2, 2\) do not fit 2 images x 1 texts"),
        (np.zeros((2, 2)), ["a", "a"], ["a", "a"], "image 'a' is in the gallery twice"),
        (np.zeros((2, 2)), ["a", "b"], ["a", "c"], "image 'c', which is not in the gallery"),
        (np.zeros((2, 2)), ["a", "b"], ["a", "a"], "image 'b' has no text"),
        (np.array([[0.0, 1.0], [0.0, np.nan]]), ["a", "b"], ["a", "b"], "query 1 and candidate 1 is NaN"),
    ],
)
def test_bad_input_is_named(scores, images, texts, message):
    with pytest.raises(ValueError, match=message):
        retrieval_recall(scores, images, texts)
