"""Captioning (FIBER §4.1): cross-entropy, then off-policy weights (GOLD), then CIDEr-D itself as the reward.

Shape letters: B batch, S captions drawn per image, L text length, T tokens of a drawn caption.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from fiber.backbone.fusion import DecoderCache
from fiber.coarse.caption_losses import (
    IGNORED,
    caption_labels,
    caption_logits,
    gold_loss,
    gold_weights,
    mean_log_probability,
    mle_loss,
    reinforce_loss,
    start_captions,
)
from fiber.coarse.decoding import Caption, SpecialTokens, sample
from fiber.coarse.model import CoarseModel
from fiber.config.stage1 import CaptionConfig, Stage1Config
from fiber.data.batches import CaptionBatch
from fiber.data.collate import collate
from fiber.data.loader import MakeSample
from fiber.data.order import Per
from fiber.data.samples.text import ImageTransform, TextSample
from fiber.data.shards import ShardSet
from fiber.evaluation.caption_samples import RewardSample
from fiber.evaluation.captioning import caption_reward, evaluate_captions
from fiber.evaluation.context import EvalContext, evaluate_sets
from fiber.tasks.classifier import freeze
from fiber.tasks.coarse_model import CoarseTask, build_model, coarse_task
from fiber.training.speed import FlopsPerSample
from fiber.training.task import Figures, Losses

Reward = Callable[[Sequence[Caption], Sequence[Sequence[str]]], np.ndarray]
"""Captions and the reference texts of each one's image -> CIDEr-D of each, (N,) on the scale 0..10."""

UNUSED_PARAMETERS = (
    "backbone.image.norm.*",
    "backbone.fusion.image_to_text.*",
    "heads.contrastive.*",
    "heads.temperature.*",
    "heads.itm.*",
    "heads.classifiers.*",
    "heads.cross_modal.text_pooler.*",
    "heads.cross_modal.image_*",
)
"""What captioning never reaches."""

# ---------------------------------------------------------------------------------------------- what it reads


def build_sample(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> MakeSample:
    """A caption and its image; for the reward, all captions of the image and numbers to draw others with, too."""
    transform = ImageTransform.of(config, training=True)
    if config.caption.objective == "cider":
        drawn = config.caption.samples, config.caption.max_new_tokens
        return RewardSample(tokenizer, transform, config.max_text, *drawn)
    return TextSample(tokenizer, transform, config.max_text)


def collate_captions(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """As `collate`, ids and mask cut to the longest caption: columns of padding alone change nothing."""
    batch = collate(samples)
    longest = int(batch["mask"].sum(1).max())
    return batch | {name: batch[name][:, :longest].contiguous() for name in ("ids", "mask")}


def per(config: Stage1Config) -> Per:
    """The reward judges by all captions of an image at once, so its epochs walk images."""
    return "image" if config.caption.objective == "cider" else "annotation"


# ---------------------------------------------------------------------------------------------- what it computes


class CaptionTask(CoarseTask):
    """Captioning by one of three objectives, `recipe.objective`.

    "mle": cross-entropy of the next token. "gold": the same, weighted by what a frozen copy of the model thinks of
    the rest of the caption; the copy is taken again every `recipe.gold_refresh` updates (the first time before the
    first update), and is part of the module, so that checkpoints hold it. "cider": `recipe.mle_weight` times "mle"
    and the rest REINFORCE on `recipe.samples` captions drawn from each image, judged by `reward`; draws come from
    the batch, so they depend on the run's seed and the sample's position alone.

    Each image is encoded once, whatever is read from it.
    """

    def __init__(
        self,
        model: CoarseModel,
        recipe: CaptionConfig,
        special_tokens: SpecialTokens,
        pad_id: int,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.label_smoothing = model, recipe, label_smoothing
        self.reward: Reward | None = None  # of objective "cider": `prepare` brings it
        self.special_tokens, self.pad_id = special_tokens, pad_id
        self.unused_parameters = UNUSED_PARAMETERS
        freeze(model, self.unused_parameters)
        if recipe.objective == "gold":
            self.frozen = copy.deepcopy(model).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; the frozen copy stays in evaluation mode: no dropout in its weights."""
        super().train(mode)
        if self.recipe.objective == "gold":
            self.frozen.eval()
        return self

    def loss_normalisers(self, batch: CaptionBatch) -> dict[str, Tensor]:
        """How many tokens the averaged loss of this micro-batch has (see `mle_loss`)."""
        return {"caption": (caption_labels(batch["ids"], self.pad_id) != IGNORED).sum()}

    def forward(self, batch: CaptionBatch) -> Losses:
        """images (B,3,S,S) uint8, ids and mask (B,L) -> weighted losses and report; "cider" also takes draws
        (B,K,T) uniform in [0,1) and references, B lists of texts."""
        ids, mask = batch["ids"], batch["mask"]
        images = start_captions(self.model, batch["images"])
        logits, labels = caption_logits(self.model, images, ids, mask), caption_labels(ids, self.pad_id)
        real = labels != IGNORED
        tokens = batch.get("loss_normalisers", {}).get("caption", real.sum().clamp(min=1))  # of all parts of a step
        mle = mle_loss(logits, labels, tokens, self.label_smoothing)
        report = {"loss/mle": mle, "accuracy/caption": (logits.argmax(-1) == labels).sum() / tokens}
        if self.recipe.objective == "mle":
            losses = {"mle": mle}
        elif self.recipe.objective == "gold":
            weights = self._gold_weights(batch, ids, mask, labels)
            losses = {"gold": gold_loss(logits, labels, weights, self.label_smoothing)}
            report |= {"loss/gold": losses["gold"], "gold/weight": (weights * real).sum() / tokens}
        else:
            reinforce, drawn = self._reinforce(batch, images)
            share = self.recipe.mle_weight
            losses = {"mle": share * mle, "reinforce": (1 - share) * reinforce}
            report |= {"loss/reinforce": reinforce} | drawn
        report |= self.model.backbone.gates()
        return losses, {name: value.detach() for name, value in report.items()}

    @torch.no_grad()
    def _gold_weights(self, batch: CaptionBatch, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        if self.training and batch["step"] % self.recipe.gold_refresh == 0:
            copy_weights(self.model, self.frozen)
        frozen = caption_logits(self.frozen, start_captions(self.frozen, batch["images"]), ids, mask)
        return gold_weights(frozen, labels)

    def _reinforce(self, batch: CaptionBatch, images: DecoderCache) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of captions drawn now, and what they are like."""
        assert self.reward is not None  # `prepare` was called
        draws = batch["draws"]
        self.model.eval()  # no dropout while the captions are drawn
        ids = sample(self.model, images, self.special_tokens, draws.flatten(0, 1), self.pad_id)
        self.model.train(self.training)
        captions = [to_caption(row, self.special_tokens) for row in ids.tolist()]
        references = [texts for texts in batch["references"] for _ in range(draws.shape[1])]
        rewards = torch.from_numpy(self.reward(captions, references)).to(draws.device, torch.float32)

        # An image for every caption: asked by several at once, it would sum in another order.
        row = torch.arange(len(ids), device=ids.device) // draws.shape[1]
        repeated = DecoderCache([(keys[row], values[row]) for keys, values in images.image])
        logits = caption_logits(self.model, repeated, ids, (ids != self.pad_id).long())
        logits = logits.index_fill(-1, torch.tensor(self.special_tokens.forbidden, device=ids.device), -torch.inf)
        log_probability = mean_log_probability(logits, caption_labels(ids, self.pad_id))
        shape = draws.shape[:2]
        loss = reinforce_loss(log_probability.view(shape), rewards.view(shape), self.recipe.baseline)
        words = (ids != self.pad_id).sum() - len(ids)  # less the start tokens, and below the end tokens
        ended = (ids == self.special_tokens.end).sum()
        report = {"reward/cider": rewards.mean(), "reward/log_probability": log_probability.mean()}
        return loss, report | {"sampled/tokens": (words - ended) / len(ids), "sampled/ended": ended / len(ids)}


def to_caption(ids: Sequence[int], special_tokens: SpecialTokens) -> Caption:
    """A row of `sample` as a caption (its score, not asked for, is 0)."""
    words = list(ids[1:])
    ended = special_tokens.end in words
    if ended:
        words = words[: words.index(special_tokens.end)]
    return Caption(words, 0.0, ended)


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Parameters of `source` into the module `target` of the same form. Where ZeRO-3 has partitioned both, every rank
    copies its own part, and nothing is gathered."""
    for ours, theirs in zip(source.parameters(), target.parameters(), strict=True):
        if hasattr(ours, "ds_tensor"):
            getattr(theirs, "ds_tensor").copy_(getattr(ours, "ds_tensor"))  # noqa: B009 (DeepSpeed adds it)
        if theirs.numel():  # empty while partitioned
            theirs.copy_(ours)


def build_module(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> CaptionTask:
    """The model and the loss of `caption.objective`."""
    special_tokens, pad_id = SpecialTokens.of(tokenizer), tokenizer.pad_token_id
    smoothing = config.finetune.label_smoothing
    return CaptionTask(build_model(config, tokenizer), config.caption, special_tokens, pad_id, smoothing)


def prepare(
    task: CaptionTask, config: Stage1Config, tokenizer: PreTrainedTokenizerFast, corpus: Sequence[ShardSet]
) -> None:
    """The reward, with word counts of the training captions. Every rank must call."""
    task.reward = caption_reward(config.caption, tokenizer, corpus, Path(config.output))


# ---------------------------------------------------------------------------------------------- how it is scored


def evaluate(task: CaptionTask, context: EvalContext) -> Figures:
    """Captions of one set by beam search, and their scores."""
    return evaluate_captions(task.model, context)


def flops(config: Stage1Config, module: CoarseTask) -> FlopsPerSample | None:
    """Not counted: what is drawn and read differs from step to step."""
    return None


TASK = coarse_task(
    name="caption",
    fields=("captions",),
    build_sample=build_sample,
    collate=collate_captions,
    build_module=build_module,
    evaluate=partial(evaluate_sets, evaluate),
    flops=flops,
    sections=("finetune", "caption"),
    verbs={"caption": ("heads.cross_modal.*", "heads.mlm.*", "backbone.fusion.caption_maps.*")},
    prepare=prepare,
    per=per,
    headline=("cider", "bleu_4", "meteor", "rouge_l"),
)
