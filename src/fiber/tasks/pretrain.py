"""One step of coarse pre-training: contrastive, matching and masked-language objectives over shared prefixes
(FIBER §3.2). Each image is encoded once, each caption twice (plain and masked)."""

import torch
from torch import Tensor, nn

from fiber.backbone.states import ImageState, TextState
from fiber.coarse.itc import ContrastiveOutput, FeatureQueue, itc_loss, negative_weights, sample_columns
from fiber.coarse.itm import exchange, itm_loss
from fiber.coarse.mlm import masked_tokens, mlm_loss
from fiber.coarse.model import CoarseModel
from fiber.config.stage1 import PretrainConfig


class PretrainTask(nn.Module):
    """Stage-1 batch -> weighted losses. Warm-ups of `recipe` are for runs from nothing: contrastive loss alone
    first, uniformly drawn before hard negatives (0 steps of either = the published recipe)."""

    unused_parameters = ()  # see `coarse.tasks.freeze`

    def __init__(self, model: CoarseModel, recipe: PretrainConfig) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.queue = FeatureQueue(recipe.queue_size, model.heads.itm.in_features // 2)

    def loss_normalisers(self, batch: dict) -> dict[str, int]:
        """How many items each averaged loss of this micro-batch has (see `mlm_loss`)."""
        return {"mlm": masked_tokens(batch["mlm_labels"])}

    def forward(self, batch: dict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Stage-1 batch -> weighted losses (with graph) and detached report."""
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

    def _text_prefixes(self, batch: dict) -> tuple[TextState, TextState]:
        size = len(batch["ids"])
        both = self.model.text_prefix(
            torch.cat([batch["ids"], batch["masked_ids"]]), torch.cat([batch["mask"], batch["mask"]])
        )
        return both[:size], both[size:]

    def _mlm(self, image: ImageState, masked: TextState, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        fused = self.model.fuse(image, masked)
        loss, correct = mlm_loss(
            self.model.heads.mlm, fused.text, batch["mlm_labels"], batch.get("loss_normalisers", {}).get("mlm")
        )
        return loss, {"accuracy/mlm": correct}

    def _itm(
        self, image: ImageState, text: TextState, contrast: ContrastiveOutput, batch: dict
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
        correct = (
            logits.argmax(-1).view(3, batch_size) == torch.tensor([[1], [0], [0]], device=logits.device)
        ).float()
        # Logit advantage over a random column: how hard the drawn negatives are.
        hardness = (contrast.image_to_text.gather(1, neg_text[:, None]) - contrast.image_to_text).mean()
        return itm_loss(logits, valid_text, valid_image), {
            "accuracy/itm": correct.mean(),
            "negatives/hardness": hardness,
        }

    def _touch(self, image: ImageState, text: TextState) -> Tensor:
        fused = self.model.fuse(image, text)
        return self.model.heads.mlm(fused.text).float().mean() + self.model.heads.itm(fused.cls).float().mean()
