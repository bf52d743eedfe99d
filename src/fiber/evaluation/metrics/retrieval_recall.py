"""Recall@k of image-text retrieval, both ways, for any number of captions per image.

Text retrieval (i2t) hits if any caption of the image is among the k best; image retrieval (t2i) if the caption's
image is. Equal scores rank the higher index first, as a reversed stable sort does; no library's choice of order
among ties enters the number.
"""

from collections.abc import Hashable, Sequence

import numpy as np

ROWS_AT_ONCE = 256  # bounds the temporary comparisons to ROWS_AT_ONCE x candidates


def retrieval_recall(
    scores: np.ndarray,
    image_ids: Sequence[Hashable] | np.ndarray,
    text_image_ids: Sequence[Hashable] | np.ndarray,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Recall of a full score matrix.

    scores: (images, texts) real, higher is better; -inf marks pairs that were not scored (re-ranking).
    image_ids: the id of each row, all different. text_image_ids: the id of the image of each column.
    Returns fractions `i2t_r{k}`, `t2i_r{k}` and `r_mean`, the mean of them all. ValueError names a shape, a score
    that is NaN, an id that comes twice, a text without image or an image without text.
    """
    scores = np.asarray(scores)
    if scores.shape != (len(image_ids), len(text_image_ids)):
        raise ValueError(f"scores {scores.shape} do not fit {len(image_ids)} images x {len(text_image_ids)} texts")
    row_of = {identity: row for row, identity in enumerate(image_ids)}
    if len(row_of) < len(image_ids):
        twice = next(identity for row, identity in enumerate(image_ids) if row_of[identity] != row)
        raise ValueError(f"image {twice!r} is in the gallery twice")
    unknown = next((identity for identity in text_image_ids if identity not in row_of), None)
    if unknown is not None:
        raise ValueError(f"a text belongs to image {unknown!r}, which is not in the gallery")
    owner = np.array([row_of[identity] for identity in text_image_ids], dtype=np.int64)
    without = np.flatnonzero(np.bincount(owner, minlength=len(image_ids)) == 0)
    if len(without):
        raise ValueError(f"image {image_ids[without[0]]!r} has no text")
    image_rank = _best_text_ranks(scores, owner)
    text_rank = _ranks(scores.T, owner)
    recall = {f"i2t_r{k}": float(np.mean(image_rank < k)) for k in ks}
    recall |= {f"t2i_r{k}": float(np.mean(text_rank < k)) for k in ks}
    return recall | {"r_mean": float(np.mean(list(recall.values())))}


def _best_text_ranks(scores: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Rank (0 = best) of each image's best-ranked own text. scores (images, texts), owner (texts,) row indices."""
    text = np.arange(len(owner))
    order = np.lexsort((text, scores[owner, text], owner))  # by image, then score, then index: the last one wins
    last = np.append(np.flatnonzero(np.diff(owner[order])), len(owner) - 1)
    best = order[last]
    return _ranks(scores, best)


def _ranks(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rank (0 = best) of column target[i] in row i of `scores`, ties going to the higher column."""
    ranks = np.empty(len(scores), dtype=np.int64)
    columns = np.arange(scores.shape[1])
    for start in range(0, len(scores), ROWS_AT_ONCE):
        rows = scores[start : start + ROWS_AT_ONCE]
        if np.isnan(rows).any():
            row, column = np.argwhere(np.isnan(rows))[0]
            raise ValueError(f"the score of query {start + row} and candidate {column} is NaN")
        wanted = target[start : start + ROWS_AT_ONCE, None]
        score = np.take_along_axis(rows, wanted, axis=1)
        ranks[start : start + ROWS_AT_ONCE] = ((rows > score) | ((rows == score) & (columns > wanted))).sum(axis=1)
    return ranks
