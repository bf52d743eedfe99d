"""Coarse pre-training (FIBER §3.2): contrastive, matching and masked-language objectives over shared prefixes. Each
image is encoded once, each caption twice (plain and masked).

Shape letters: B batch, L text length, S image side.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fiber.backbone.states import ImageState, TextState
from fiber.coarse.itc import ContrastiveOutput, FeatureQueue, itc_loss, negative_weights, sample_columns
from fiber.coarse.itm import exchange, itm_loss
from fiber.coarse.mlm import masked_tokens, mlm_loss
from fiber.coarse.model import CoarseModel
from fiber.config.stage1 import PretrainConfig, Stage1Config
from fiber.data.batches import PretrainBatch
from fiber.data.records import Sample, annotation_text
from fiber.data.text import encode, mask_tokens
from fiber.evaluation.context import evaluate_sets
from fiber.images.resize import load_image
from fiber.tasks.coarse_model import CoarseTask, build_model, coarse_task, image_text_flops
from fiber.tasks.retrieval import CONTRASTIVE, MATCHING, evaluate
from fiber.training.speed import FlopsPerSample
from fiber.training.task import Losses

# ---------------------------------------------------------------------------------------------- what it reads


class PretrainSample:
    """make_sample of stage-1 pre-training: one image and one of its texts.

    Returns images uint8 (3, S, S) (plain resize), ids, mask, masked_ids, mlm_labels int64 (L,) and text (str).
    `pil_resize` resizes with Pillow instead of on tensors; the values differ by a grey level or two.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_size: int,
        max_text: int,
        mask_probability: float = 0.15,
        pil_resize: bool = False,
    ):
        self.tokenizer, self.image_size, self.max_text = tokenizer, image_size, max_text
        self.mask_probability, self.pil_resize = mask_probability, pil_resize
        self.special = np.array(sorted(set(tokenizer.all_special_ids)), dtype=np.int64)

    def __call__(self, sample: Sample, field: str, annotation: int, rng: np.random.Generator) -> dict[str, Any]:
        text = annotation_text(sample.record, field, annotation)
        ids, mask = encode(self.tokenizer, text, self.max_text)
        vocab, mask_id = len(self.tokenizer), self.tokenizer.mask_token_id
        masked_ids, labels = mask_tokens(ids, self.special, vocab, mask_id, rng, self.mask_probability)
        return {
            "images": load_image(sample.images[0][1], self.image_size, self.pil_resize),
            "ids": ids,
            "mask": mask,
            "masked_ids": masked_ids,
            "mlm_labels": labels,
            "text": text,
        }


def build_sample(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> PretrainSample:
    """How the run makes training samples."""
    masked, pil_resize = config.pretrain.mask_probability, config.data.transform == "pil"
    return PretrainSample(tokenizer, config.image_size, config.max_text, masked, pil_resize)


# ---------------------------------------------------------------------------------------------- what it computes


class PretrainTask(CoarseTask):
    """Stage-1 batch -> weighted losses. Warm-ups of `recipe` are for runs from nothing: contrastive loss alone
    first, uniformly drawn before hard negatives (0 steps of either = the published recipe)."""

    def __init__(self, model: CoarseModel, recipe: PretrainConfig) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.queue = FeatureQueue(recipe.queue_size, model.heads.itm.in_features // 2)

    def loss_normalisers(self, batch: PretrainBatch) -> dict[str, Tensor]:
        """How many items each averaged loss of this micro-batch has (see `mlm_loss`)."""
        return {"mlm": masked_tokens(batch["mlm_labels"])}

    def forward(self, batch: PretrainBatch) -> Losses:
        """images (B,3,S,S) uint8, ids, mask, masked_ids and mlm_labels (B,L) int64, image_id (B,), uniform (B,2),
        step -> losses "itc", "mlm", "itm" (or "itc", "fused" in the first warm-up) and their report."""
        image = self.model.image_prefix(batch["images"])
        # One pass over both versions of the captions.
        text, masked = self._text_prefixes(batch)

        features = self.model.image_embedding(image), self.model.text_embedding(text)
        temperature = self.model.heads.temperature()
        itc, contrast = itc_loss(*features, batch["image_id"], temperature, self.queue, self.recipe.gather_gradient)
        if self.training:
            self.queue.enqueue_gathered(*features, batch["image_id"])

        report = {"loss/itc": itc, "temperature": temperature[0], "accuracy/itc_t2i": contrast.accuracy()}
        losses = {"itc": self.recipe.itc_weight * itc}
        if self.training and batch["step"] < self.recipe.itc_only_steps:
            # One pair with weight 0 in place of all: every parameter takes part in every step (ZeRO-3).
            losses["fused"] = 0.0 * self._touch(image[:1], masked[:1])
        else:
            mlm, mlm_report = self._mlm(image, masked, batch)
            itm, itm_report = self._itm(image, text, contrast, batch)
            losses |= {"mlm": self.recipe.mlm_weight * mlm, "itm": self.recipe.itm_weight * itm}
            report |= {"loss/mlm": mlm, "loss/itm": itm} | mlm_report | itm_report
        report |= self.model.backbone.gates()
        return losses, {name: value.detach() for name, value in report.items()}

    def _text_prefixes(self, batch: PretrainBatch) -> tuple[TextState, TextState]:
        size = len(batch["ids"])
        both = self.model.text_prefix(
            torch.cat([batch["ids"], batch["masked_ids"]]), torch.cat([batch["mask"], batch["mask"]])
        )
        return both[:size], both[size:]

    def _mlm(self, image: ImageState, masked: TextState, batch: PretrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        fused = self.model.fuse(image, masked)
        loss, correct = mlm_loss(
            self.model.heads.mlm, fused.text, batch["mlm_labels"], batch.get("loss_normalisers", {}).get("mlm")
        )
        return loss, {"accuracy/mlm": correct}

    def _itm(
        self, image: ImageState, text: TextState, contrast: ContrastiveOutput, batch: PretrainBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        hard = not self.training or batch["step"] >= self.recipe.random_negative_steps
        to_text = negative_weights(contrast.image_to_text, contrast.same_image, hard)
        to_image = negative_weights(contrast.text_to_image, contrast.same_image, hard)
        neg_text, valid_text = sample_columns(to_text, batch["uniform"][:, 0])
        neg_image, valid_image = sample_columns(to_image, batch["uniform"][:, 1])
        images = ImageState.cat([image, image, exchange(image, neg_image)])
        texts = TextState.cat([text, exchange(text, neg_text), text])
        logits = self.model.match_logits(images, texts)
        batch_size = len(image)
        matched = logits.argmax(-1).view(3, batch_size)
        correct = torch.cat([matched[:1], 1 - matched[1:]]).float()
        # Logit advantage over a random column: how hard the drawn negatives are.
        hardness = (contrast.image_to_text.gather(1, neg_text[:, None]) - contrast.image_to_text).mean()
        return itm_loss(logits, valid_text, valid_image), {
            "accuracy/itm": correct.mean(),
            "negatives/hardness": hardness,
        }

    def _touch(self, image: ImageState, text: TextState) -> Tensor:
        fused = self.model.fuse(image, text)
        return self.model.heads.mlm(fused.text).float().mean() + self.model.heads.itm(fused.cls).float().mean()


def build_module(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> PretrainTask:
    """The model and its three losses."""
    return PretrainTask(build_model(config, tokenizer), config.pretrain)


def flops(config: Stage1Config, module: CoarseTask) -> FlopsPerSample | None:
    """Shared prefixes, both tails, four fused passes, and the words at masked positions."""
    return image_text_flops(config, module, lambda cost: cost.shared)


TASK = coarse_task(
    name="pretrain",
    verbs=CONTRASTIVE | MATCHING,
    fields=("captions",),
    build_sample=build_sample,
    build_module=build_module,
    evaluate=partial(evaluate_sets, evaluate),
    flops=flops,
    sections=("pretrain",),
    headline=("reranked_r_mean", "r_mean", "t2i_r1", "i2t_r1"),
)
