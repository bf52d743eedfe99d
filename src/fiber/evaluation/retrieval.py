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
from fiber.evaluation.metrics.ranking import Ranking, both_ways, rank_candidates, rerank
from fiber.evaluation.progress import Progress
from fiber.images.resize import load_image

ITM_PRIOR = math.log(3) - 2 / 3 * math.log(2)  # entropy of one match to two non-matches: 0.6365
HITS = 10  # best candidates of each query that are kept where fewer are re-ranked
Rankings = tuple[Ranking, Ranking]  # of texts by image, of images by text


@dataclass(frozen=True)
class Retrieval:
    """What `evaluate_retrieval` found: its figures, the row (M,) of each text's image, and on the host the rankings
    of texts by image (N queries) and of images by text (M queries): by the dual encoder, as matching re-ranks them,
    and as both do together; without re-ranking these are the same."""

    figures: dict[str, float]
    image_row: np.ndarray
    dual_image_to_text: Ranking
    dual_text_to_image: Ranking
    image_to_text: Ranking
    text_to_image: Ranking
    joint_image_to_text: Ranking
    joint_text_to_image: Ranking


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
    """Recall@1/5/10 both ways, by contrastive similarity and re-ranked (`rerank_both`).

    `images`, `texts`: this rank's batches, see `gallery.encode_images` and `encode_texts`; texts may bring
    "swapped_ids" and "swapped_mask" (B,L), the caption with its relation reversed (mask all 0: no relation).
    `rerank_k`: candidates of each query that matching scores (0: none; at least the size of the gallery: all pairs);
    the other candidates keep their contrastive order behind these. `batch`: pairs a fused pass. Memory is linear in
    images and texts: no score is kept but those of the best candidates.

    Every rank must call and gets the same figures, for any number of ranks: `i2t_r{1,5,10}`, `t2i_r{1,5,10}`,
    `r_mean`, the same with `reranked_` (by matching alone) and with `joint_` before them, `itm_loss` (batches of
    `batch` texts with hard negatives drawn as in training) beside `itm_prior`, `swap_accuracy` (share of the
    `swap_count` captions whose match falls when their relation is swapped; chance 1/2), `contrastive_swap_accuracy`
    (the same by contrastive similarity), `images`, `texts`, `pairs` (scored for re-ranking), `chance_t2i_r1`.
    The model's mode is set to evaluation and put back.
    """
    cache, progress = cache or PrefixCache(), progress or Progress()
    training = model.training
    model.eval()
    gallery = encode_images(model, images, cache, progress)
    captions, columns = encode_texts(model, texts, gallery.image_id, cache, progress)
    figures: dict[str, float] = {"images": len(gallery.image_id), "texts": len(captions.image_row)}
    figures["chance_t2i_r1"] = 1 / len(gallery.image_id)
    figures |= _itm_loss(model, gallery, captions, batch, progress)
    if "swapped_ids" in columns:
        figures |= _swap_accuracy(model, gallery, captions, columns, batch, progress)
    rows, keep = captions.image_row, max(rerank_k, HITS)
    numbers = torch.arange(len(gallery.image_id), device=rows.device)
    by_image = rank_candidates(gallery.features, captions.features, numbers, rows, keep)
    by_text = rank_candidates(captions.features, gallery.features, rows, numbers, keep)
    figures |= both_ways(by_image, by_text)
    matched = joint = (by_image, by_text)
    if rerank_k:
        matched, joint, figures["pairs"] = rerank_both(
            model, gallery, captions, by_image, by_text, rerank_k, batch, progress
        )
        figures |= {f"reranked_{k}": v for k, v in both_ways(*matched).items()}
        figures |= {f"joint_{k}": v for k, v in both_ways(*joint).items()}
    model.train(training)
    return Retrieval(figures, rows.cpu().numpy(), by_image, by_text, *matched, *joint)


def rerank_both(
    model: CoarseModel,
    images: Images,
    texts: Texts,
    by_image: Ranking,
    by_text: Ranking,
    k: int,
    batch: int,
    progress: Progress,
) -> tuple[Rankings, Rankings, int]:
    """Texts by image and images by text, the k best of each query in a new order: by their match logits alone, as the
    release has it, and jointly with the contrast; and the number of pairs matched: a pair that is a candidate both
    ways is matched once.

    Why jointly: training draws the negatives of a match by the softmax of similarity over temperature, so matching
    learns what the contrast does not know. Its log-odds are, but for a constant of the query, log p(match) less that
    logit (noise-contrastive estimation, Gutmann and Hyvarinen, 2010); their sum orders by p.
    """
    rows, size = texts.image_row.cpu(), len(texts.image_row)
    numbers = torch.arange(len(by_image.rank))
    image_first = numbers[:, None] * size + by_image.columns[:, :k]  # (N,k) pairs as numbers: image x M + text
    text_first = by_text.columns[:, :k] * size + torch.arange(size)[:, None]  # (M,k)
    pairs = torch.cat([image_first.flatten(), text_first.flatten()]).unique()
    logits = match_logits(
        model, images, texts.prefixes, pairs // size, pairs % size, batch=batch, progress=progress, what="re-ranking"
    ).cpu()

    def reordered(scores: Tensor, contrast: float) -> Rankings:
        """By `scores` (K,) of the pairs and `contrast` times their cosine."""
        to_texts = scores[torch.searchsorted(pairs, image_first)] + contrast * by_image.scores[:, :k]
        to_images = scores[torch.searchsorted(pairs, text_first)] + contrast * by_text.scores[:, :k]
        behind = float(by_image.scores[:, 0].max() - min(to_texts.min(), to_images.min()) + 1)
        return (
            rerank(by_image, to_texts, numbers, rows, behind),
            rerank(by_text, to_images, rows, numbers, behind),
        )

    matched = reordered(logits[:, 1], 0.0)
    joint = reordered(logits[:, 1] - logits[:, 0], 1 / float(model.heads.temperature()))
    return matched, joint, len(pairs)


def _itm_loss(model: CoarseModel, images: Images, texts: Texts, batch: int, progress: Progress) -> dict[str, float]:
    """Mean matching loss over batches of consecutive texts with their images, negatives drawn as in training."""
    size = len(texts.image_row)
    uniform = torch.rand(size, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    temperature = model.heads.temperature()
    pairs, valid = [], []
    for start in range(0, size, batch):
        text = torch.arange(start, min(start + batch, size), device=texts.image_row.device)
        image, draw = texts.image_row[text], uniform[start : start + batch].to(text.device)
        block = images.features[image] @ texts.features[text].T / temperature  # rows: images, columns: texts, aligned
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
