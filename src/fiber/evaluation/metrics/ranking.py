"""Rankings of candidates by a query, and Recall@k, with memory linear in queries and candidates.

Letters: Q queries, C candidates, H feature width, h candidates kept of each query. A candidate is a query's own where
their labels are equal: in text retrieval (i2t) all captions of the image, in image retrieval (t2i) the one image.
Equal scores rank the higher column first, as a reversed stable sort does; no library's choice of order among ties
enters a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fiber.cards import exact_products

SCORES_AT_ONCE = 2**21  # bounds the memory: queries are taken in blocks of so many scores
LOWEST = torch.iinfo(torch.int64).min


@dataclass(frozen=True)
class Ranking:
    """On the host: columns (Q,h) int64, the best candidates of each query, best first; scores (Q,h) fp32; rank
    (Q,) int64 (0 = best), that of the best of its own candidates among all C."""

    columns: Tensor
    scores: Tensor
    rank: Tensor

    def recall(self, k: int) -> float:
        """Share of the queries with one of their own among the k best."""
        return float((self.rank < k).double().mean())


def rank_candidates(queries: Tensor, candidates: Tensor, query_label: Tensor, label: Tensor, keep: int) -> Ranking:
    """The ranking by inner product of `queries` (Q,H) and `candidates` (C,H) fp32, whose labels are `query_label`
    (Q,) and `label` (C,), integers, on one device. `keep`: h, at most C. The host waits for the result alone.
    ValueError names a query or a candidate with a feature that is NaN and a query without a candidate of its own."""
    rows = max(1, SCORES_AT_ONCE // len(candidates))
    # The result has its place from the start: small blocks kept between large ones let go would tear the heap.
    found = queries.new_zeros(len(queries) + 1, min(keep, len(candidates)) + 1, dtype=torch.int64)
    for start in range(0, len(queries), rows):
        block = slice(start, min(start + rows, len(queries)))
        with exact_products():
            scores = queries[block] @ candidates.T
        found[block] = _rank_block(scores, query_label[block], label, keep)
    found[-1] += queries.isnan().any() | candidates.isnan().any()
    found = found.cpu()
    keys, rank = found[:-1, :-1], found[:-1, -1]
    if bool(found[-1, -1]):
        for what, features in (("query", queries), ("candidate", candidates)):
            nan = features.isnan().any(1)
            if bool(nan.any()):
                raise ValueError(f"the feature of {what} {int(nan.int().argmax())} is NaN")
    if bool((rank < 0).any()):
        raise ValueError(f"query {int((rank < 0).int().argmax())} has no candidate of its own")
    return Ranking(keys & 0xFFFFFFFF, _scores_of(keys), rank)


def _rank_block(scores: Tensor, query_label: Tensor, label: Tensor, keep: int) -> Tensor:
    """scores (b,C) and labels (b,), (C,) -> int64 (b,h+1): the keys of the best, best first, and the rank of the best
    own one, -1 where there is none."""
    keys = _keys(scores)
    own = torch.where(query_label[:, None] == label, keys, LOWEST).amax(1, keepdim=True)
    rank = torch.where(own == LOWEST, -1, (keys > own).sum(1, keepdim=True))
    return torch.cat([keys.topk(min(keep, keys.shape[1])).values, rank], 1)


def _keys(scores: Tensor) -> Tensor:
    """fp32 (b,C) -> int64 whose order is that of (score, column): above, the bits of the score, of a negative one all
    but the sign inverted, which puts floats in the order of integers; below, the column."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0: of the two zeros one remains
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | torch.arange(scores.shape[1], device=scores.device)


def _scores_of(keys: Tensor) -> Tensor:
    """The scores in keys."""
    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)


def rerank(ranking: Ranking, logits: Tensor, query_label: Tensor, label: Tensor, behind: float) -> Ranking:
    """The ranking after the k best of each query got new scores, `logits` (Q,k), k <= h, in the order of its columns
    (all on the host). The others keep their order behind these; their scores are lowered by `behind`. A query of
    which none of its own is among the k best keeps its rank."""
    k = logits.shape[1]
    head, place = ranking.columns[:, :k].sort(dim=1, descending=True)
    logits, order = logits.gather(1, place).sort(dim=1, descending=True, stable=True)
    head = head.gather(1, order)
    own = label[head] == query_label[:, None]
    rank = torch.where(own.any(1), own.int().argmax(1), ranking.rank)
    return Ranking(
        torch.cat([head, ranking.columns[:, k:]], 1),
        torch.cat([logits, ranking.scores[:, k:] - behind], 1),
        rank,
    )


def both_ways(image_to_text: Ranking, text_to_image: Ranking, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """`i2t_r{k}`, `t2i_r{k}` as fractions and `r_mean`, the mean of them all."""
    found = {f"i2t_r{k}": image_to_text.recall(k) for k in ks} | {f"t2i_r{k}": text_to_image.recall(k) for k in ks}
    return found | {"r_mean": sum(found.values()) / len(found)}
