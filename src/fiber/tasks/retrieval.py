"""Retrieval (FIBER §4.1): by the dual encoder alone, or by matching, which re-ranks what the dual encoder finds.

Shape letters: B batch, L text length, S image side, N images, M texts.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fiber import distributed
from fiber.backbone.states import ImageState, TextState
from fiber.coarse.itc import ContrastiveOutput, FeatureQueue, itc_loss, negative_weights, sample_columns
from fiber.coarse.itm import exchange
from fiber.coarse.model import CoarseModel
from fiber.config.stage1 import Stage1Config
from fiber.data.batches import TextBatch
from fiber.data.records import annotation_text, image_hash
from fiber.data.samples.text import ImageTransform, TextSample
from fiber.data.shards import ShardSet
from fiber.errors import ConfigError, ShardError
from fiber.evaluation.context import EXAMPLES, EvalContext, Example, evaluate_sets
from fiber.evaluation.metrics.ranking import Ranking
from fiber.evaluation.predictions import REMEDY, RepeatedError, write_results
from fiber.evaluation.retrieval import HITS, Retrieval, evaluate_retrieval, retrieval_sets
from fiber.tasks.classifier import UNFUSED_HEADS, ends_of_towers, freeze, report
from fiber.tasks.coarse_model import CoarseTask, build_model, coarse_task, image_text_flops, match_flops
from fiber.training.speed import FlopsPerSample
from fiber.training.task import Figures, Losses


def build_sample(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> TextSample:
    """A caption and its image."""
    return TextSample(tokenizer, ImageTransform.of(config, training=True), config.max_text)


# ---------------------------------------------------------------------------------------------- what it computes


class RetrievalItcTask(CoarseTask):
    """Retrieval by the dual encoder: the contrastive objective of pre-training alone.

    `queue_size`, `gather_gradient`: see `coarse.itc`.
    """

    def __init__(self, model: CoarseModel, queue_size: int, gather_gradient: bool) -> None:
        super().__init__()
        self.model, self.gather_gradient = model, gather_gradient
        self.queue = FeatureQueue(queue_size, model.heads.itm.in_features // 2)
        self.unused_parameters = ("backbone.fusion.*", "heads.cross_modal.*", "heads.mlm.*", "heads.itm.*")
        freeze(model, self.unused_parameters)

    def forward(self, batch: TextBatch) -> Losses:
        """images (B,3,S,S) uint8, ids, mask (B,L), image_id (B,) int64 -> losses, report. The target is a pair's own
        column; other columns of the same image are left out."""
        image = self.model.image_embedding(self.model.image_prefix(batch["images"]))
        text = self.model.text_embedding(self.model.text_prefix(batch["ids"], batch["mask"]))
        temperature = self.model.heads.temperature()
        loss, contrast = itc_loss(image, text, batch["image_id"], temperature, self.queue, self.gather_gradient)
        if self.training:
            self.queue.enqueue_gathered(image, text, batch["image_id"])
        figures = {"loss/itc": loss, "temperature": temperature[0], "accuracy/itc_t2i": contrast.accuracy()}
        return {"itc": loss}, {name: value.detach() for name, value in figures.items()}


class RetrievalItmTask(CoarseTask):
    """Retrieval by matching: every other pair of the stream is true; of the others, every other one has another
    image of the global batch in place of its own, the rest another text.

    `hard`: negatives by contrastive similarity, else uniformly. `itc_weight`: weight of the contrastive loss beside
    matching (0 in the release). Without it the heads of the dual encoder, which chooses what is re-ranked, stay as
    they are while the towers change below them.
    """

    def __init__(
        self,
        model: CoarseModel,
        *,
        hard: bool,
        itc_weight: float,
        gather_gradient: bool,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.hard, self.itc_weight = model, hard, itc_weight
        self.gather_gradient, self.label_smoothing = gather_gradient, label_smoothing
        self.no_queue = FeatureQueue(0, model.heads.itm.in_features // 2)
        self.unused_parameters = ("backbone.fusion.caption_maps.*", "heads.mlm.*")
        freeze(model, self.unused_parameters)
        if not itc_weight:  # not unused: it chooses what evaluation re-ranks
            freeze(model, (*UNFUSED_HEADS, *ends_of_towers(model)))

    def forward(self, batch: TextBatch) -> Losses:
        """images (B,3,S,S) uint8, ids, mask (B,L), image_id, position (B,) int64, uniform (B,2) -> losses, report."""
        image = self.model.image_prefix(batch["images"])
        text = self.model.text_prefix(batch["ids"], batch["mask"])
        losses: dict[str, Tensor] = {}
        figures: dict[str, Tensor] = {}
        contrast = None
        if self.hard or self.itc_weight:
            with torch.set_grad_enabled(self.itc_weight > 0 and torch.is_grad_enabled()):
                itc, contrast = self._contrast(image, text, batch["image_id"])
            figures |= {"loss/itc": itc.detach(), "accuracy/itc_t2i": contrast.accuracy()}
            if self.itc_weight:
                losses["itc"] = self.itc_weight * itc
        image, text, valid = self._pairs(image, text, contrast, batch)
        logits, labels = self.model.match_logits(image, text), (batch["position"] + 1) % 2
        each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        losses["itm"] = (each * valid).mean()
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return losses, figures | report(self.model, "itm", losses["itm"], accuracy)

    def _contrast(self, image: ImageState, text: TextState, image_id: Tensor) -> tuple[Tensor, ContrastiveOutput]:
        features = self.model.image_embedding(image), self.model.text_embedding(text)
        temperature = self.model.heads.temperature()
        return itc_loss(*features, image_id, temperature, self.no_queue, self.gather_gradient)

    def _pairs(
        self, image: ImageState, text: TextState, contrast: ContrastiveOutput | None, batch: TextBatch
    ) -> tuple[ImageState, TextState, Tensor]:
        """The B pairs to match by position modulo 4 (0, 2 true; 1 another image; 3 another text), and which of them
        count (B,) bool: a negative that could not be drawn, because all show the same image, does not."""
        if contrast is None:
            same = batch["image_id"][:, None] == distributed.all_gather(batch["image_id"])[None]
            scores = same.float(), same.float()
        else:
            same, scores = contrast.same_image, (contrast.text_to_image, contrast.image_to_text)
        local = torch.arange(len(image), device=same.device) + distributed.rank() * len(image)
        kind, valid, rows = batch["position"] % 4, torch.ones_like(local, dtype=torch.bool), []
        for column, (turn, score) in enumerate(zip((1, 3), scores, strict=True)):
            drawn, possible = sample_columns(negative_weights(score, same, self.hard), batch["uniform"][:, column])
            rows.append(torch.where(kind == turn, drawn, local))
            valid &= possible | (kind != turn)
        return exchange(image, rows[0]), exchange(text, rows[1]), valid


def build_itc(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> RetrievalItcTask:
    """The model and the contrastive loss."""
    pretrain = config.pretrain
    if config.finetune.label_smoothing:
        raise ConfigError("finetune.label_smoothing: the contrastive objective has no classes to smooth; leave it 0")
    return RetrievalItcTask(build_model(config, tokenizer), pretrain.queue_size, pretrain.gather_gradient)


def build_itm(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> RetrievalItmTask:
    """The model and the matching loss."""
    recipe = config.finetune
    return RetrievalItmTask(
        build_model(config, tokenizer),
        hard=recipe.negatives == "hard",
        itc_weight=recipe.itc_weight,
        gather_gradient=config.pretrain.gather_gradient,
        label_smoothing=recipe.label_smoothing,
    )


# ---------------------------------------------------------------------------------------------- how it is scored


def evaluate(task: CoarseTask, context: EvalContext) -> Figures:
    """Recall@1, 5, 10 both ways, i2t_r1 ... t2i_r10 (`evaluate_retrieval`), and the best hits of
    every image and of every text as JSON. Raises ShardError where the set holds an image twice."""
    config = context.config
    images, texts = retrieval_sets(
        context.shards,
        context.tokenizer,
        config.image_size,
        config.max_text,
        batch=config.eval.batch,
        workers=config.data.workers,
        field=context.field,
        pil_resize=config.data.transform == "pil",
    )
    size = {"rerank_k": config.eval.rerank_k, "batch": config.eval.batch}
    try:
        result = evaluate_retrieval(task.model, images, texts, **size, progress=context.progress)
    except RepeatedError as error:
        raise ShardError(f"{context.shards.where}: {_named(error.number, context.shards)}; {REMEDY}") from None
    if distributed.is_main():
        context.draw(write_hits(result, context))
    return result.figures


def _named(number: int, shards: ShardSet) -> str:
    """Two samples by the image_id whose hash they have."""
    ids = (shards.record(i)["image_id"] for i in range(len(shards)))
    return f"two samples with image_id {next((one for one in ids if image_hash(one) == number), number)!r}"


def write_hits(result: Retrieval, context: EvalContext) -> list[Example]:
    """`image_to_text.json`: each image's best texts, with score and whether they are its own, and the rank (0 = best)
    of the best of its own; `text_to_image.json`: each text's best images, and the rank of its own. -> a few images
    with their best texts."""
    numbers = np.flatnonzero(context.shards.counts(context.field)).tolist()
    image_ids, words = [], []
    for number in numbers:
        record = context.shards.record(number)
        image_ids.append(record["image_id"])
        words += [annotation_text(record, context.field, i) for i in range(len(record[context.field]))]
    own = result.image_row.tolist()
    by_image = [
        {
            "image_id": image_ids[row],
            "rank": rank,
            "texts": [{"text": words[t], "score": score, "own": own[t] == row} for t, score in hits],
        }
        for row, (rank, hits) in enumerate(ranks_and_hits(result.image_to_text))
    ]
    by_text = (
        {
            "text": words[text],
            "image_id": image_ids[own[text]],
            "rank": rank,
            "images": [{"image_id": image_ids[row], "score": score} for row, score in hits],
        }
        for text, (rank, hits) in enumerate(ranks_and_hits(result.text_to_image))
    )
    write_results(context.folder / "image_to_text.json", by_image)
    write_results(context.folder / "text_to_image.json", by_text)
    chosen = np.linspace(0, len(numbers) - 1, min(EXAMPLES, len(numbers))).round().astype(int).tolist()
    return [(numbers[row], _hits_in_words(by_image[row]["texts"])) for row in chosen]


def ranks_and_hits(found: Ranking) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """Of each query the rank of the best of its own, and the best candidates with their scores, best first."""
    for rank, columns, scores in zip(found.rank, found.columns[:, :HITS], found.scores[:, :HITS], strict=True):
        yield int(rank), list(zip(columns.tolist(), scores.tolist(), strict=True))


def _hits_in_words(texts: list[dict[str, Any]]) -> dict[str, str]:
    """The five best texts; * marks the image's own."""
    return {f"hit {i}": f"{'* ' if t['own'] else ''}{t['text']}" for i, t in enumerate(texts[:5], start=1)}


def itc_flops(config: Stage1Config, module: CoarseTask) -> FlopsPerSample | None:
    """Both towers to their ends, no fusion."""
    return image_text_flops(
        config, module, lambda cost: cost.image_prefix + cost.text_prefix + cost.image_tail + cost.text_tail
    )


Verbs = dict[str, tuple[str, ...]]
CONTRASTIVE: Verbs = dict.fromkeys(("retrieve", "embed", "classify"), ("heads.contrastive.*",))
"""What contrastive training gives: the verbs and the parameters that they need."""
MATCHING: Verbs = {"match": ("heads.cross_modal.*", "heads.itm.*")}
"""What training of the matching head gives."""

ITC = coarse_task(
    name="retrieval_itc",
    fields=("captions",),
    build_sample=build_sample,
    build_module=build_itc,
    evaluate=partial(evaluate_sets, evaluate),
    flops=itc_flops,
    sections=("pretrain", "finetune"),
    verbs=CONTRASTIVE,
    headline=("r_mean", "t2i_r1", "i2t_r1"),
)
ITM = coarse_task(
    name="retrieval_itm",
    fields=("captions",),
    build_sample=build_sample,
    build_module=build_itm,
    evaluate=partial(evaluate_sets, evaluate),
    flops=match_flops,
    sections=("pretrain", "finetune"),
    verbs=CONTRASTIVE | MATCHING,
    headline=("reranked_r_mean", "reranked_t2i_r1", "reranked_i2t_r1", "r_mean"),
)
