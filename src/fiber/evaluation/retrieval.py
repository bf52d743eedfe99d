"""Image-text retrieval: the dual encoder ranks everything, matching re-ranks the best candidates of each query.

Letters: N images, M texts (one or more per image), K pairs.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fiber.coarse.itc import negative_weights, sample_columns
from fiber.coarse.itm import itm_loss
from fiber.coarse.model import CoarseModel
from fiber.data.records import Sample, annotation_text
from fiber.data.shards import ShardSet
from fiber.data.text import encode
from fiber.evaluation.gallery import Images, PrefixCache, Texts, encode_images, encode_texts, match_logits
from fiber.evaluation.loader import EvalLoader
from fiber.evaluation.metrics.retrieval_recall import retrieval_recall
from fiber.evaluation.progress import Progress
from fiber.images.resize import load_image

ITM_PRIOR = math.log(3) - 2 / 3 * math.log(2)  # entropy of one match to two non-matches: 0.6365
KS = (1, 5, 10)
ROWS_AT_ONCE = 256  # bounds the memory of choosing candidates


@dataclass(frozen=True)
class Retrieval:
    """What `evaluate_retrieval` found: its figures, and for images the score matrices (N,M) fp32 on the host,
    the ids (N,) of the rows and the row (M,) of each text's image. Without re-ranking the last two scores are
    the first."""

    figures: dict[str, float]
    image_id: np.ndarray
    image_row: np.ndarray
    contrastive: np.ndarray
    image_to_text: np.ndarray
    text_to_image: np.ndarray


@torch.no_grad()
def evaluate_retrieval(
    model: CoarseModel,
    images: Iterable[dict],
    texts: Iterable[dict],
    *,
    rerank_k: int,
    batch: int,
    cache: PrefixCache | None = None,
    progress: Progress | None = None,
) -> Retrieval:
    """Recall@1/5/10 both ways, by contrastive similarity and re-ranked by matching.

    `images`, `texts`: this rank's batches, see `gallery.encode_images` and `encode_texts`; texts may bring
    "swapped_ids" and "swapped_mask" (B,L), the caption with its relation reversed (mask all 0: no relation).
    `rerank_k`: candidates of each query that matching scores (0: none; at least the size of the gallery: all pairs);
    the other candidates keep their contrastive order behind these. `batch`: pairs a fused pass.

    Every rank must call and gets the same figures, for any number of ranks: `i2t_r{1,5,10}`, `t2i_r{1,5,10}`,
    `r_mean`, the same with `reranked_` before them, `itm_loss` (batches of `batch` texts with hard negatives drawn as
    in training) beside `itm_prior`, `swap_accuracy` (share of the `swap_count` captions whose match falls when their
    relation is swapped; chance 1/2), `contrastive_swap_accuracy` (the same by contrastive similarity), `images`,
    `texts`, `pairs` (scored for re-ranking), `chance_t2i_r1`.
    The model's mode is set to evaluation and put back.
    """
    cache, progress = cache or PrefixCache(), progress or Progress()
    training = model.training
    model.eval()
    gallery = encode_images(model, images, cache, progress)
    captions, columns = encode_texts(model, texts, gallery.image_id, cache, progress)
    contrastive = gallery.features @ captions.features.T
    figures: dict[str, float] = {"images": len(gallery.image_id), "texts": len(captions.image_row)}
    figures["chance_t2i_r1"] = 1 / len(gallery.image_id)
    figures |= _itm_loss(model, gallery, captions, contrastive, batch, progress)
    if "swapped_ids" in columns:
        figures |= _swap_accuracy(model, gallery, captions, columns, batch, progress)
    by_image, by_text = contrastive, contrastive
    if rerank_k:
        by_image, by_text, pairs = rerank(model, gallery, captions, contrastive, rerank_k, batch, progress)
        figures["pairs"] = pairs
    model.train(training)
    dual, image_to_text, text_to_image = (x.cpu().numpy() for x in (contrastive, by_image, by_text))
    ids, rows = gallery.image_id.cpu().numpy(), captions.image_row.cpu().numpy()
    figures |= _recall(dual, dual, rows)
    if rerank_k:
        figures |= {f"reranked_{k}": v for k, v in _recall(image_to_text, text_to_image, rows).items()}
    return Retrieval(figures, ids, rows, dual, image_to_text, text_to_image)


def rerank(
    model: CoarseModel, images: Images, texts: Texts, scores: Tensor, k: int, batch: int, progress: Progress
) -> tuple[Tensor, Tensor, int]:
    """Scores (N,M) for ranking texts by image, the same for images by text, and the number of pairs matched.

    Candidates are the k best of each query by `scores` (N,M), ties to the higher index; a pair that is a candidate
    both ways is matched once. Candidates have their match logit; the others their score, moved below every logit.
    """
    by_image, by_text = candidates(scores, k), candidates(scores.T, k).T
    image_row, text_row = torch.nonzero(by_image | by_text, as_tuple=True)
    logits = match_logits(
        model, images, texts.prefixes, image_row, text_row, batch=batch, progress=progress, what="re-ranking"
    )[:, 1]
    behind = scores - (scores.max() - logits.min() + 1)
    matched = behind.clone()
    matched[image_row, text_row] = logits
    return torch.where(by_image, matched, behind), torch.where(by_text, matched, behind), len(logits)


def candidates(scores: Tensor, k: int) -> Tensor:
    """(Q,C) -> bool (Q,C): the k best columns of each row, ties to the higher index as in `retrieval_recall`."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    for start in range(0, len(scores), ROWS_AT_ONCE):
        rows = scores[start : start + ROWS_AT_ONCE]
        least = rows.topk(min(k, rows.shape[1])).values[:, -1:]
        above, equal = rows > least, rows == least
        from_the_end = equal.flip(1).cumsum(1).flip(1)
        wanted = k - above.sum(1, keepdim=True)
        chosen[start : start + ROWS_AT_ONCE] = above | (equal & (from_the_end <= wanted))
    return chosen


def _recall(image_to_text: np.ndarray, text_to_image: np.ndarray, image_row: np.ndarray) -> dict[str, float]:
    rows = range(len(image_to_text))
    figures = {n: v for n, v in retrieval_recall(image_to_text, rows, image_row, KS).items() if n.startswith("i2t")}
    figures |= {n: v for n, v in retrieval_recall(text_to_image, rows, image_row, KS).items() if n.startswith("t2i")}
    return figures | {"r_mean": float(np.mean(list(figures.values())))}


def _itm_loss(
    model: CoarseModel, images: Images, texts: Texts, scores: Tensor, batch: int, progress: Progress
) -> dict[str, float]:
    """Mean matching loss over batches of consecutive texts with their images, negatives drawn as in training."""
    size = len(texts.image_row)
    uniform = torch.rand(size, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = scores / model.heads.temperature()
    pairs, valid = [], []
    for start in range(0, size, batch):
        text = torch.arange(start, min(start + batch, size), device=scores.device)
        image, draw = texts.image_row[text], uniform[start : start + batch].to(scores.device)
        block = logits[image][:, text]  # rows: images, columns: texts, aligned
        same = image[:, None] == image[None]
        neg_text, valid_text = sample_columns(negative_weights(block, same, hard=True), draw[:, 0])
        neg_image, valid_image = sample_columns(negative_weights(block.T, same, hard=True), draw[:, 1])
        pairs.append(
            torch.stack([torch.cat([image, image, image[neg_image]]), torch.cat([text, text[neg_text], text])])
        )
        valid.append((valid_text, valid_image))
    image_row, text_row = torch.cat(pairs, dim=1)
    matched = match_logits(
        model, images, texts.prefixes, image_row, text_row, batch=batch, progress=progress, what="matching"
    )
    losses = [itm_loss(x, *v) for x, v in zip(matched.split([p.shape[1] for p in pairs]), valid, strict=True)]
    return {"itm_loss": float(torch.stack(losses).mean()), "itm_prior": ITM_PRIOR}


def _swap_accuracy(
    model: CoarseModel, images: Images, texts: Texts, columns: dict[str, Tensor], batch: int, progress: Progress
) -> dict[str, float]:
    """Share of captions with a relation that fit their image better than they do with the relation swapped."""
    text = torch.nonzero(columns["swapped_mask"].any(1)).squeeze(1)
    if not len(text):
        return {"swap_count": 0}
    parts = zip(columns["swapped_ids"][text].split(batch), columns["swapped_mask"][text].split(batch), strict=True)
    swapped = [model.text_prefix(ids, mask) for ids, mask in parts]
    image = texts.image_row[text]
    features = torch.cat([model.text_embedding(prefixes) for prefixes in swapped])
    closer = (images.features[image] * (texts.features[text] - features)).sum(1) > 0
    matched = []
    for prefixes, row in (
        (texts.prefixes, text),
        (type(texts.prefixes).cat(swapped), torch.arange(len(text), device=text.device)),
    ):
        logits = match_logits(
            model, images, prefixes, image, row, batch=batch, progress=progress, what="swapped relations"
        )
        matched.append(logits[:, 1])
    return {
        "swap_accuracy": float((matched[0] > matched[1]).float().mean()),
        "contrastive_swap_accuracy": float(closer.float().mean()),
        "swap_count": len(text),
    }


# ---------------------------------------------------------------------------------------------- from shards


def retrieval_sets(
    shards: ShardSet,
    tokenizer: PreTrainedTokenizerFast,
    image_size: int,
    max_text: int,
    *,
    batch: int,
    workers: int = 0,
    field: str = "captions",
    pil_resize: bool = False,
    swap: Callable[[str], str] | None = None,
) -> tuple[EvalLoader, EvalLoader]:
    """The images that have texts and all these texts, as `evaluate_retrieval` takes them.

    `pil_resize`: Pillow's resize, by which published figures are judged. `swap` turns the relation of a caption
    round and raises ValueError where there is none.
    """
    image = _Image(image_size, pil_resize)
    caption = _Caption(tokenizer, max_text, swap)
    return EvalLoader(shards, field, image, "image", batch, workers), EvalLoader(
        shards, field, caption, "annotation", batch, workers
    )


@dataclass(frozen=True)
class _Image:
    image_size: int
    pil_resize: bool

    def __call__(self, sample: Sample, field: str, annotation: int, rng: np.random.Generator) -> dict:
        return {"images": load_image(sample.images[0][1], self.image_size, self.pil_resize)}


@dataclass(frozen=True)
class _Caption:
    tokenizer: PreTrainedTokenizerFast
    max_text: int
    swap: Callable[[str], str] | None

    def __call__(self, sample: Sample, field: str, annotation: int, rng: np.random.Generator) -> dict:
        text = annotation_text(sample.record, field, annotation)
        ids, mask = encode(self.tokenizer, text, self.max_text)
        made = {"ids": ids, "mask": mask, "text": text}
        if self.swap is None:
            return made
        try:
            swapped, swapped_mask = encode(self.tokenizer, self.swap(text), self.max_text)
        except ValueError:
            swapped, swapped_mask = ids, np.zeros_like(mask)
        return made | {"swapped_ids": swapped, "swapped_mask": swapped_mask}
