"""BLEU (Papineni et al. 2002) and ROUGE-L (Lin 2004) of captions, equal to the COCO caption tools to the last digit.

Captions are tokenised: words between blanks. N images, one candidate and some references each.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

MAX_NGRAM = 4
BETA = 1.2  # weight of recall in ROUGE-L
TINY, SMALL = 1e-15, 1e-9  # the COCO code adds them to numerators and denominators


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """BLEU-1 to BLEU-4 of the corpus, fractions; each candidate's length is held against its closest reference (the
    shorter of two equally close)."""
    correct, guessed, length, reference_length = np.zeros(MAX_NGRAM), np.zeros(MAX_NGRAM), 0, 0
    for candidate, captions in zip(candidates, references, strict=True):
        words, truth = candidate.split(), [caption.split() for caption in captions]
        length += len(words)
        reference_length += min((abs(len(other) - len(words)), len(other)) for other in truth)[1]
        for n in range(1, MAX_NGRAM + 1):
            most: Counter[tuple[str, ...]] = Counter()
            for other in truth:
                most |= _ngrams(other, n)
            correct[n - 1] += (_ngrams(words, n) & most).total()
            guessed[n - 1] += max(0, len(words) - n + 1)
    ratio = (length + TINY) / (reference_length + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(MAX_NGRAM):
        product *= (float(correct[n]) + TINY) / (float(guessed[n]) + SMALL)
        scores.append(product ** (1 / (n + 1)) * brevity)
    return scores


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean over images of the F-measure of the longest common subsequence, a fraction; precision and recall are
    each the best over the references."""
    scores = []
    for candidate, captions in zip(candidates, references, strict=True):
        words, precision, recall = candidate.split(), 0.0, 0.0
        for other in map(str.split, captions):
            common = _longest_common(words, other)
            precision = max(precision, common / max(len(words), 1))
            recall = max(recall, common / max(len(other), 1))
        both = precision > 0 and recall > 0
        scores.append((1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if both else 0.0)
    return float(np.mean(scores))


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]
