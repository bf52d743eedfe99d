"""What a training step of each task fine-tuned from stage 1 computes (FIBER §4.1): questions, pairs of images,
entailment, retrieval by the dual encoder and by matching. `logits` is what evaluation asks.

Shape letters: B batch, L text length, S image side, A answers, K classes.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber import distributed
from fiber.backbone.states import ImageState, TextState
from fiber.coarse.itc import ContrastiveOutput, FeatureQueue, itc_loss, negative_weights, sample_columns
from fiber.coarse.itm import exchange
from fiber.coarse.model import CoarseModel

Losses = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Weighted losses with graph, and the detached report."""


def freeze(model: CoarseModel, patterns: Sequence[str]) -> None:
    """Freeze the parameters of `model` whose names fit a pattern (`heads.mlm.*`): those that a task never reaches.

    Left trainable, weight decay would shrink them at the ZeRO stages that keep a gradient of zeros for them, and not
    at the others.
    """
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)


UNFUSED_HEADS = ("heads.contrastive.*", "heads.temperature.*")
UNUSED_WHEN_FUSED = ("backbone.fusion.caption_maps.*", "heads.mlm.*", "heads.itm.*", *UNFUSED_HEADS)
"""What a classifier of fused pairs never reaches, besides `ends_of_towers`."""


def ends_of_towers(model: CoarseModel) -> tuple[str, ...]:
    """The norms that end the unfused towers; a fused pass goes without."""
    return "backbone.image.norm.*", f"backbone.text.layers.{len(model.backbone.text.layers) - 1}.norm2.*"


class VqaTask(nn.Module):
    """Questions over a vocabulary of answers: binary cross-entropy with the soft targets of ten annotators, summed
    over answers (the release's mean times the number of answers) and averaged over questions."""

    def __init__(self, model: CoarseModel, answers: Sequence[str], label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.answers, self.label_smoothing = model, list(answers), label_smoothing
        self.unused_parameters = (*UNUSED_WHEN_FUSED, *ends_of_towers(model))
        freeze(model, self.unused_parameters)

    def logits(self, batch: dict) -> Tensor:
        """images (B,3,S,S), ids and mask (B,L) -> (B,A) fp32, one sigmoid per answer."""
        return self.model.heads.classifiers["vqa"](_fused(self.model, batch)).float()

    def forward(self, batch: dict) -> Losses:
        """The above and targets (B,A) in [0,1] -> losses, report. The accuracy is the target of the best answer."""
        logits, targets = self.logits(batch), batch["targets"]
        smooth = targets + self.label_smoothing * (1 / targets.shape[1] - targets)
        loss = F.binary_cross_entropy_with_logits(logits, smooth, reduction="sum") / len(logits)
        accuracy = targets.gather(1, logits.argmax(-1, keepdim=True)).mean()
        outside = batch["answers_outside"].float().mean()
        return {"vqa": loss}, _report(self.model, "vqa", loss, accuracy) | {"answers/outside": outside}


class ClassifyTask(nn.Module):
    """One class a text and its image (entailment), or its pair of images (nlvr2): softmax cross-entropy.

    `head`: the classifier of the model. For two images the text is encoded once and fused with each.
    """

    def __init__(self, model: CoarseModel, head: str, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.head, self.label_smoothing = model, head, label_smoothing
        self.unused_parameters = (*UNUSED_WHEN_FUSED, *ends_of_towers(model))
        freeze(model, self.unused_parameters)

    def logits(self, batch: dict) -> Tensor:
        """images (B,3,S,S) or (B,2,3,S,S), ids and mask (B,L) -> (B,K) fp32."""
        fused = _fused_pair if batch["images"].ndim == 5 else _fused
        return self.model.heads.classifiers[self.head](fused(self.model, batch)).float()

    def forward(self, batch: dict) -> Losses:
        """The above and labels (B,) int64 -> losses, report."""
        logits, labels = self.logits(batch), batch["labels"]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return {self.head: loss}, _report(self.model, self.head, loss, accuracy)


class RetrievalItcTask(nn.Module):
    """Retrieval by the dual encoder: the contrastive objective of pre-training alone.

    `queue_size`, `gather_gradient`: see `coarse.itc`.
    """

    def __init__(self, model: CoarseModel, queue_size: int, gather_gradient: bool) -> None:
        super().__init__()
        self.model, self.gather_gradient = model, gather_gradient
        self.queue = FeatureQueue(queue_size, model.heads.itm.in_features // 2)
        self.unused_parameters = ("backbone.fusion.*", "heads.cross_modal.*", "heads.mlm.*", "heads.itm.*")
        freeze(model, self.unused_parameters)

    def forward(self, batch: dict) -> Losses:
        """images (B,3,S,S), ids and mask (B,L), image_id (B,) -> losses, report."""
        image = self.model.image_embedding(self.model.image_prefix(batch["images"]))
        text = self.model.text_embedding(self.model.text_prefix(batch["ids"], batch["mask"]))
        temperature = self.model.heads.temperature()
        loss, contrast = itc_loss(image, text, batch["image_id"], temperature, self.queue, self.gather_gradient)
        if self.training:
            self.queue.enqueue_gathered(image, text, batch["image_id"])
        report = {"loss/itc": loss, "temperature": temperature[0], "accuracy/itc_t2i": contrast.accuracy()}
        return {"itc": loss}, {name: value.detach() for name, value in report.items()}


class RetrievalItmTask(nn.Module):
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
        if not itc_weight:  # not unused_parameters: it chooses what evaluation re-ranks
            freeze(model, (*UNFUSED_HEADS, *ends_of_towers(model)))

    def forward(self, batch: dict) -> Losses:
        """images (B,3,S,S), ids and mask (B,L), image_id and position (B,), uniform (B,4) -> losses, report."""
        image = self.model.image_prefix(batch["images"])
        text = self.model.text_prefix(batch["ids"], batch["mask"])
        losses, report, contrast = {}, {}, None
        if self.hard or self.itc_weight:
            with torch.set_grad_enabled(self.itc_weight > 0 and torch.is_grad_enabled()):
                itc, contrast = self._contrast(image, text, batch["image_id"])
            report |= {"loss/itc": itc.detach(), "accuracy/itc_t2i": contrast.accuracy()}
            if self.itc_weight:
                losses["itc"] = self.itc_weight * itc
        image, text, valid = self._pairs(image, text, contrast, batch)
        logits, labels = self.model.match_logits(image, text), (batch["position"] + 1) % 2
        each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        losses["itm"] = (each * valid).mean()
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return losses, report | _report(self.model, "itm", losses["itm"], accuracy)

    def _contrast(self, image: ImageState, text: TextState, image_id: Tensor) -> tuple[Tensor, ContrastiveOutput]:
        features = self.model.image_embedding(image), self.model.text_embedding(text)
        temperature = self.model.heads.temperature()
        return itc_loss(*features, image_id, temperature, self.no_queue, self.gather_gradient)

    def _pairs(
        self, image: ImageState, text: TextState, contrast: ContrastiveOutput | None, batch: dict
    ) -> tuple[ImageState, TextState, Tensor]:
        """The B pairs to match by position modulo 4 (0, 2 true; 1 another image; 3 another text), and which of them
        count (B,) bool: a negative that could not be drawn, because all show the same image, does not."""
        if contrast is None:
            same = batch["image_id"][:, None] == distributed.all_gather(batch["image_id"])[None]
            scores = same.float(), same.float()
        else:
            same, scores = contrast.same_image, (contrast.text_to_image, contrast.image_to_text)
        own = torch.arange(len(image), device=same.device) + distributed.rank() * len(image)
        kind, valid, rows = batch["position"] % 4, torch.ones_like(own, dtype=torch.bool), []
        for column, (turn, score) in enumerate(zip((1, 3), scores, strict=True)):
            drawn, possible = sample_columns(negative_weights(score, same, self.hard), batch["uniform"][:, column])
            rows.append(torch.where(kind == turn, drawn, own))
            valid &= possible | (kind != turn)
        return exchange(image, rows[0]), exchange(text, rows[1]), valid


def _fused(model: CoarseModel, batch: dict) -> Tensor:
    """images (B,3,S,S), ids and mask (B,L) -> (B,2H)."""
    return model.fuse(model.image_prefix(batch["images"]), model.text_prefix(batch["ids"], batch["mask"])).cls


def _fused_pair(model: CoarseModel, batch: dict) -> Tensor:
    """images (B,2,3,S,S), ids and mask (B,L) -> (B,4H): first image, second image."""
    images = model.image_prefix(batch["images"].flatten(0, 1))  # in turns: first, second, first, ...
    texts = model.text_prefix(batch["ids"], batch["mask"]).repeat_interleave(2)
    return model.fuse(images, texts).cls.unflatten(0, (-1, 2)).flatten(1)


def _report(model: CoarseModel, name: str, loss: Tensor, accuracy: Tensor) -> dict[str, Tensor]:
    figures = {f"loss/{name}": loss, f"accuracy/{name}": accuracy}
    return {name: value.detach() for name, value in figures.items()} | model.backbone.gates()
