"""Caption metrics: CIDEr-D, BLEU and ROUGE-L in plain Python, the COCO tools through pycocoevalcap, NoCaps by domain.

What the literature calls CIDEr on COCO is CIDEr-D (Vedantam et al., 2015): clipped counts, a Gaussian penalty on the
difference in length, times ten. `cider_d` equals the COCO code to the last digit, its slip included: the length it
penalises counts bigrams, one fewer than the words. Values are on the 0..10 scale; papers print them times 100.

`evaluate` needs nothing but Python: `tokenize` reproduces the Stanford PTB tokeniser of the COCO tools on all but
exotic captions (measured: 7 of 4,196 differ, smileys and strings made up to break it). For numbers to publish pass
`coco_tools=True`, which runs the original tokeniser and scorers and METEOR, which nothing here has: it needs
`pip install "fiber-vl[caption]"` and a Java runtime. SPICE, which downloads its models when run, is left out.
"""

import contextlib
import importlib.util
import io
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from fiber.data.convert.plain_pickle import load_plain
from fiber.evaluation.metrics.overlap import MAX_NGRAM, bleu, rouge_l
from fiber.evaluation.predictions import Row, by_key, check_complete, write_results

SIGMA = 6.0  # of the length penalty, in words
DOMAINS = ("in-domain", "near-domain", "out-domain")

Ngram = tuple[str, ...]

# What Stanford's tokeniser writes for some characters.
_ASCII = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "–": " -- ", "—": " -- ", "…": " ... ", "£": "#", "€": "$"}
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_TWO_WORDS = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"}
# Marks the COCO tools drop. They mean to drop brackets too, but look for "-LRB-" after lower-casing.
_DROPPED = re.compile(r"""-+|\.+|[!?'"`,:;]|''|``""")
_TOKEN = re.compile(
    r"""
      (?: mr | mrs | ms | dr | st | vs | prof | jr | sr ) \. (?=\s+\S)     # abbreviations keep their period
    | (?: [^\W\d_] \. ){2,}                                                # u.s.  i.e.  p.m.
    | \d+ (?: [.,:] \d+ )* (?: [-/]? \w+ )*                                # 1,000  3.5  10:30  1980s  3-d
    | @? \w+ (?: n't\b | (?= ' (?: s | d | m | re | ve | ll ) \b )         # ca n't; it, before 's
             | (?: (?: ' (?! (?: s | d | m | re | ve | ll ) \b ) | [-/.&] ) \w+ )* )   # o'clock  t-shirt  stands/sits
    | ' (?: s | d | m | re | ve | ll | em | cause | n' ) (?!\w)
    | --+ | \.{2,} | [!?]+ | \S
    """,
    re.VERBOSE,
)


def tokenize(text: str) -> str:
    """A caption as the COCO tools see it: lower-case PTB tokens without punctuation, joined by blanks."""
    words = []
    for token in _TOKEN.findall(text.translate(_ASCII).lower()):
        if not _DROPPED.fullmatch(token):
            stem = token.removesuffix("n't")
            negated = stem != token and stem != ""
            words.append(f"{stem} n't" if negated else _TWO_WORDS.get(token, _BRACKETS.get(token, token)))
    return " ".join(words)


@dataclass(frozen=True)
class DocumentFrequency:
    """In the references of how many of `images` images each n-gram (n = 1..4) occurs."""

    counts: Mapping[Ngram, int]
    images: int

    @classmethod
    def of(cls, references: Iterable[Sequence[str]]) -> Self:
        """Count over a corpus: per image its tokenised reference captions."""
        counts: Counter[Ngram] = Counter()
        images = 0
        for captions in references:
            counts.update({ngram for caption in captions for ngram in _ngrams(caption)})
            images += 1
        return cls(counts, images)

    def prune_singletons(self) -> Self:
        """Without the n-grams of one image, most of them all: they weigh what unknown ones weigh."""
        return type(self)({ngram: count for ngram, count in self.counts.items() if count > 1}, self.images)

    def save(self, path: str | Path) -> None:
        """Write as JSON: `{"images": int, "counts": {"a b c": int}}`."""
        counts = {" ".join(ngram): count for ngram, count in sorted(self.counts.items())}
        Path(path).write_text(json.dumps({"images": self.images, "counts": counts}, ensure_ascii=False))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote (.json), or the pickle of the usual reward code, `{"document_frequency": {tuple of
        words: count}, "ref_len": images}`. ValueError if the file is something else."""
        if Path(path).suffix != ".json":
            data = load_plain(path)
            if not isinstance(data, dict) or not {"document_frequency", "ref_len"} <= set(data):
                raise ValueError(f"{path} is no document-frequency pickle (wants document_frequency, ref_len)")
            return cls(dict(data["document_frequency"]), int(data["ref_len"]))
        data = json.loads(Path(path).read_text())
        if not isinstance(data, dict) or set(data) != {"images", "counts"}:
            raise ValueError(f"{path} is not a document-frequency file (wants the keys images, counts)")
        return cls({tuple(ngram.split(" ")): count for ngram, count in data["counts"].items()}, data["images"])


def cider_d(
    candidates: Sequence[str], references: Sequence[Sequence[str]], frequency: DocumentFrequency | None = None
) -> np.ndarray:
    """CIDEr-D of each candidate, (N,) float64 on the scale 0..10.

    candidates: N tokenised captions (words between blanks). references: N lists of tokenised captions.
    frequency: document frequencies; None counts them over `references` (evaluation: give the whole split at once, for
    of one image every n-gram weighs nothing). As a training reward give those of the training set.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates but references for {len(references)} images")
    empty = next((i for i, captions in enumerate(references) if not captions), None)
    if empty is not None:
        raise ValueError(f"image number {empty} has no reference caption")
    frequency = frequency or DocumentFrequency.of(references)
    return np.array(
        [
            _TfIdf(candidate, frequency).score([_TfIdf(caption, frequency) for caption in captions])
            for candidate, captions in zip(candidates, references, strict=True)
        ]
    )


def best_constant(references: Sequence[Sequence[str]], limit: int = 20) -> float:
    """The baseline of CIDEr-D: mean score of one caption that is said of every image but its own, the best of
    `limit` references spread evenly over the set. Arguments and scale as `cider_d`; 0 for a single image."""
    frequency = DocumentFrequency.of(references)
    own = list(range(0, len(references), max(1, len(references) // limit)))[:limit]
    constants = [_TfIdf(references[image][0], frequency) for image in own]
    scores = np.zeros(len(constants))
    for image, captions in enumerate(references):
        truth = [_TfIdf(caption, frequency) for caption in captions]
        others = zip(constants, own, strict=True)
        scores += [0.0 if mine == image else constant.score(truth) for constant, mine in others]
    return float(scores.max() / max(len(references) - 1, 1))


class _TfIdf:
    """Weighted n-grams of one caption. The order of sums is the reference code's, so that the last digits agree."""

    def __init__(self, caption: str, document: DocumentFrequency) -> None:
        frequency, log_images = document.counts, math.log(max(document.images, 1))
        self.weights: list[dict[Ngram, float]] = [{} for _ in range(MAX_NGRAM)]
        self.norms = [0.0] * MAX_NGRAM
        self.length = 0
        for ngram, count in _ngrams(caption).items():
            n = len(ngram) - 1
            weight = count * (log_images - math.log(max(1.0, frequency.get(ngram, 0))))
            self.weights[n][ngram] = weight
            self.norms[n] += weight**2
            if len(ngram) == 2:  # the reference code means words, and counts bigrams
                self.length += count
        self.norms = [math.sqrt(norm) for norm in self.norms]

    def score(self, references: Sequence["_TfIdf"]) -> float:
        """CIDEr-D of this caption against the references of its image."""
        total = np.zeros(MAX_NGRAM)
        for reference in references:
            total += self.similarity(reference)
        return float(np.mean(total) / len(references) * 10.0)

    def similarity(self, reference: "_TfIdf") -> np.ndarray:
        """(MAX_NGRAM,) clipped cosines times the length penalty."""
        cosines = np.zeros(MAX_NGRAM)
        for n, (mine, theirs) in enumerate(zip(self.weights, reference.weights, strict=True)):
            for ngram, weight in mine.items():
                other = theirs.get(ngram, 0.0)
                cosines[n] += min(weight, other) * other
            if self.norms[n] != 0 and reference.norms[n] != 0:
                cosines[n] /= self.norms[n] * reference.norms[n]
        difference = float(self.length - reference.length)
        return cosines * math.e ** (-(difference**2) / (2 * SIGMA**2))


def _ngrams(caption: str) -> Counter[Ngram]:
    words = caption.split()
    counts: Counter[Ngram] = Counter()
    for n in range(1, MAX_NGRAM + 1):
        counts.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return counts


def evaluate(
    predictions: Iterable[Row], references: Mapping[Hashable, Sequence[str]], coco_tools: bool = False
) -> dict[str, float]:
    """Score one caption per image against its references, document frequencies taken over these references.

    predictions: rows `{"image_id", "caption"}` of raw text; references: raw captions by image id.
    Returns `{"Bleu_1", ..., "Bleu_4", "ROUGE_L", "CIDEr"}`, with `coco_tools` also METEOR and all of them by those
    tools. ValueError names an image without prediction, unknown, predicted twice or without reference.
    """
    captions = by_key(predictions, "image_id", "caption")
    check_complete(captions, references, "captions")
    bare = next((image for image, texts in references.items() if not texts), None)
    if bare is not None:
        raise ValueError(f"image {bare!r} has no reference caption")
    if coco_tools:
        return _coco_metrics(captions, references)
    truth = [[tokenize(text) for text in texts] for texts in references.values()]
    found = [tokenize(captions[image]) for image in references]
    scores = {f"Bleu_{n}": score for n, score in enumerate(bleu(found, truth), 1)}
    return scores | {"ROUGE_L": rouge_l(found, truth), "CIDEr": float(np.mean(cider_d(found, truth)))}


def evaluate_domains(
    predictions: Iterable[Row],
    references: Mapping[Hashable, Sequence[str]],
    domains: Mapping[Hashable, str],
    coco_tools: bool = False,
) -> dict[str, dict[str, float]]:
    """NoCaps: `evaluate` on the images of each domain by themselves, then on all, "entire".

    domains: image id -> "in-domain", "near-domain" or "out-domain". Each part is a corpus with document frequencies
    of its own, so "entire" is no mean of the three. Domains without images are absent from the result.
    """
    captions = by_key(predictions, "image_id", "caption")
    unknown = next((image for image in references if domains.get(image) not in DOMAINS), None)
    if unknown is not None:
        raise ValueError(f"image {unknown!r} has domain {domains.get(unknown)!r}; NoCaps knows {', '.join(DOMAINS)}")
    check_complete(captions, references, "captions")

    def score(images: list[Hashable]) -> dict[str, float]:
        rows = ({"image_id": image, "caption": captions[image]} for image in images)
        return evaluate(rows, {image: references[image] for image in images}, coco_tools)

    parts = {domain: [image for image in references if domains[image] == domain] for domain in DOMAINS}
    return {name: score(images) for name, images in (parts | {"entire": list(references)}).items() if images}


def write_submission(path: str | Path, image_ids: Iterable[int | str], predictions: Iterable[Row]) -> Path:
    """The COCO and NoCaps servers' file: `[{"image_id", "caption"}]`, sorted, exactly one row for every image id."""
    captions = by_key(predictions, "image_id", "caption")
    check_complete(captions, set(image_ids), "caption submission")
    ids: list[Any] = list(captions)
    ids.sort()  # all numbers, or all texts
    return write_results(path, ({"image_id": image, "caption": captions[image]} for image in ids))


def coco_tools_missing() -> str | None:
    """What the COCO tools lack on this machine, in a line; None where they can run."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return 'the COCO caption tools are not installed: pip install "fiber-vl[caption]" (CIDEr-D needs no tools)'
    if shutil.which("java") is None:
        return "the COCO tokeniser and METEOR run on Java: put a java command (JRE 8 or later) on the PATH"
    return None


def _coco_metrics(captions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]) -> dict[str, float]:
    missing = coco_tools_missing()
    if missing is not None:
        raise RuntimeError(missing)
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    scores: dict[str, float] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # the scorers print as they go
        tokens = PTBTokenizer()
        truth = tokens.tokenize({image: [{"caption": t} for t in references[image]] for image in references})
        found = tokens.tokenize({image: [{"caption": captions[image]}] for image in references})
        for n, value in enumerate(Bleu(MAX_NGRAM).compute_score(truth, found, verbose=0)[0], 1):
            scores[f"Bleu_{n}"] = float(value)
        for name, scorer in (("METEOR", Meteor()), ("ROUGE_L", Rouge()), ("CIDEr", Cider())):
            scores[name] = float(scorer.compute_score(truth, found)[0])
    return scores
