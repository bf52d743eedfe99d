"""Rankings against the recorded rule of the reference code, brute force and hand-made ties, and their memory."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fiber.evaluation.metrics import ranking
from fiber.evaluation.metrics.ranking import Ranking, both_ways, rank_candidates, rerank


def of_scores(scores: np.ndarray, query_label: list[int], label: list[int], keep: int = 10) -> Ranking:
    """The ranking of a full score matrix: it is its own product with the unit matrix, exactly."""
    matrix = torch.from_numpy(scores).float()
    return rank_candidates(matrix, torch.eye(scores.shape[1]), torch.tensor(query_label), torch.tensor(label), keep)


def recall(scores: np.ndarray, owner: list[int], ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """scores (images, texts), the row of each text's image -> figures both ways."""
    rows = list(range(len(scores)))
    return both_ways(of_scores(scores, rows, owner), of_scores(np.ascontiguousarray(scores.T), owner, rows), ks)


def test_equals_the_reference_rule(shared):
    data = json.loads((shared / "real/retrieval_synthetic/scores_and_expected.json").read_text())
    found = recall(np.array(data["scores_image_by_text"]), data["txt2img"])
    names = {"i2t": "tr", "t2i": "ir"}
    for way, old in names.items():
        for k in (1, 5, 10):
            assert 100 * found[f"{way}_r{k}"] == pytest.approx(data["expected_percent"][f"{old}_r{k}"], rel=1e-15)
    assert 100 * found["r_mean"] == pytest.approx(np.mean(list(data["expected_percent"].values())), rel=1e-15)


@pytest.mark.parametrize("at_once", [1, 5000, 2**21])
def test_equals_sorting_with_ties_and_rows_that_blocks_do_not_divide(at_once, monkeypatch):
    monkeypatch.setattr(ranking, "SCORES_AT_ONCE", at_once)
    rng = np.random.default_rng(3)
    images, texts, keep = 60, 141, 12
    owner = np.concatenate([np.arange(images), rng.integers(0, images, texts - images)])
    rng.shuffle(owner)
    scores = rng.integers(-6, 6, (images, texts)).astype(np.float32) / 7  # ties everywhere
    scores[scores == 0] *= rng.choice([-1, 1], (scores == 0).sum())  # zeros of both signs are equal
    for queries, matrix, query_label, label in (
        ("images", scores, np.arange(images), owner),
        ("texts", scores.T, owner, np.arange(images)),
    ):
        found = of_scores(np.ascontiguousarray(matrix), query_label.tolist(), label.tolist(), keep)
        for query, row in enumerate(matrix):
            order = np.argsort(row, kind="stable")[::-1]
            assert found.columns[query].tolist() == order[:keep].tolist(), queries
            assert found.scores[query].tolist() == row[order[:keep]].tolist(), queries
            assert found.rank[query] == np.flatnonzero(label[order] == query_label[query])[0], queries


def test_equal_scores_rank_the_higher_index_first():
    found = recall(np.zeros((2, 3)), [0, 1, 0], ks=(1, 2))
    # best text of both images is the third, the first one's; best image of all texts is the second
    assert found["i2t_r1"] == 1 / 2
    assert found["i2t_r2"] == 1.0
    assert found["t2i_r1"] == 1 / 3
    assert found["t2i_r2"] == 1.0


@pytest.mark.parametrize("scale", [1e-40, 1.0, 1e38])
def test_scores_of_any_size_and_sign_are_ordered_and_come_back_to_the_bit(scale):
    scores = (torch.rand(40, 30, generator=torch.Generator().manual_seed(0)) - 0.5) * scale
    found = rank_candidates(scores, torch.eye(30), torch.arange(40) % 30, torch.arange(30), 30)
    order = scores.sort(dim=1, descending=True)
    assert torch.equal(found.columns, order.indices)
    assert torch.equal(found.scores, order.values)


def test_new_scores_of_the_best_order_them_and_leave_the_rest_behind():
    """Three candidates scored again, ties to the higher column; a query whose own is fourth keeps its rank."""
    scores = np.array([[0.5, 0.9, 0.8, 0.7], [0.1, 0.9, 0.8, 0.7]])
    before = of_scores(scores, [2, 0], [0, 1, 2, 3])
    assert before.rank.tolist() == [1, 3]
    after = rerank(before, torch.tensor([[1.0, 3.0, 3.0], [1.0, 2.0, 4.0]]), torch.tensor([2, 0]), torch.arange(4), 5)
    assert after.columns.tolist() == [[3, 2, 1, 0], [3, 2, 1, 0]]
    torch.testing.assert_close(after.scores, torch.tensor([[3.0, 3.0, 1.0, -4.5], [4.0, 2.0, 1.0, -4.9]]))
    assert after.rank.tolist() == [1, 3]


def test_a_query_with_several_of_its_own_counts_the_best():
    before = of_scores(np.array([[0.9, 0.8, 0.7, 0.6]]), [7], [1, 7, 2, 7])
    assert before.rank.tolist() == [1]
    after = rerank(before, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([7]), torch.tensor([1, 7, 2, 7]), 0)
    assert after.rank.tolist() == [0]


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple) else (out,):
            self.numbers = max(self.numbers, x.numel() if isinstance(x, Tensor) else 0)
        return out


class Products(TorchDispatchMode):
    """The precision of each matrix product."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "mm" in str(func):
            self.seen.append(torch.get_float32_matmul_precision())
        return func(*args, **(kwargs or {}))


def test_no_tensor_grows_with_the_product_of_queries_and_candidates(monkeypatch):
    monkeypatch.setattr(ranking, "SCORES_AT_ONCE", 4000)
    features = torch.randn(3000, 8)
    with Largest() as seen:
        found = rank_candidates(features, features, torch.arange(3000), torch.arange(3000), 10)
    assert seen.numbers == 3001 * 11  # the result; all scores would be 9 million
    assert found.columns.shape == (3000, 10)


def test_scores_are_products_in_full_precision():
    """In TF32, which evaluation allows on a card, scores of near candidates would be equal."""
    seen: list[str] = []
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with Products(seen):
            rank_candidates(torch.ones(3, 4), torch.ones(5, 4), torch.zeros(3), torch.zeros(5), 1)
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest"]


@pytest.mark.parametrize(
    ("scores", "query_label", "label", "message"),
    [
        (np.zeros((2, 2)), [0, 1], [0, 0], "query 1 has no candidate of its own"),
        (np.array([[0.0, 1.0], [0.0, np.nan]]), [0, 1], [0, 1], "query 1 is NaN"),
    ],
)
def test_bad_input_is_named(scores, query_label, label, message):
    with pytest.raises(ValueError, match=message):
        of_scores(scores, query_label, label)


def test_a_broken_candidate_is_named():
    with pytest.raises(ValueError, match="candidate 2 is NaN"):
        rank_candidates(
            torch.ones(1, 1), torch.tensor([[1.0], [1.0], [torch.nan]]), torch.zeros(1), torch.zeros(3), 1
        )
