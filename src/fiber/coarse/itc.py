"""Image-text contrastive objective over the global batch and a queue of past features.

Shape letters: B local batch, G global batch, Q queue slots, H feature width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber import distributed


class FeatureQueue(nn.Module):
    """First-in first-out store of past contrastive features and of their image ids. The same on all ranks,
    because every rank enqueues the gathered batch. Slots not yet filled never enter a loss."""

    image: Tensor
    text: Tensor
    image_id: Tensor
    enqueued: Tensor

    def __init__(self, slots: int, width: int) -> None:
        super().__init__()
        self.register_buffer("image", torch.zeros(slots, width))
        self.register_buffer("text", torch.zeros(slots, width))
        self.register_buffer("image_id", torch.full((slots,), -1))
        self.register_buffer("enqueued", torch.zeros(1, dtype=torch.int64))

    def filled(self) -> Tensor:
        """(Q,) bool: slots that hold a feature."""
        return torch.arange(len(self.image), device=self.image.device) < self.enqueued

    @torch.no_grad()
    def enqueue(self, image: Tensor, text: Tensor, image_id: Tensor) -> None:
        """Overwrite the oldest slots with a global batch: features (G,H), ids (G,)."""
        slots = len(self.image)
        if not slots:
            return
        image, text, image_id = image[-slots:], text[-slots:], image_id[-slots:]
        slot = (self.enqueued + torch.arange(len(image), device=image.device)) % slots
        self.image[slot] = image.to(self.image.dtype)
        self.text[slot] = text.to(self.text.dtype)
        self.image_id[slot] = image_id
        self.enqueued += len(image)

    def enqueue_gathered(self, image: Tensor, text: Tensor, image_id: Tensor) -> None:
        """`enqueue` the local batches of all ranks: features (B,H), ids (B,). Collective."""
        self.enqueue(*(distributed.all_gather(x) for x in (image.detach(), text.detach(), image_id)))


@dataclass(frozen=True)
class ContrastiveOutput:
    """What matching needs from the contrastive pass: fp32 logits of the local rows against the global batch,
    image->text and text->image (B,G), and which of these pairs show the same image (B,G) bool."""

    image_to_text: Tensor
    text_to_image: Tensor
    same_image: Tensor

    def accuracy(self) -> Tensor:
        """Text->image retrieval in the global batch: share (0..1) of texts whose best column shows their image."""
        best = self.text_to_image.argmax(-1, keepdim=True)
        return self.same_image.gather(1, best).float().mean()


def itc_loss(
    image: Tensor, text: Tensor, image_id: Tensor, temperature: Tensor, queue: FeatureQueue, gather_gradient: bool
) -> tuple[Tensor, ContrastiveOutput]:
    """Mean of the image->text and text->image cross-entropies with the true pair as the target (FIBER §3).

    image, text (B,H) unit features, image_id (B,) -> loss (), `ContrastiveOutput`. Columns are the global batch and
    the filled part of the queue. Columns that show the image of the row (other captions of it in the batch, older
    copies in the queue) are left out: they are not negatives. The reference lets no gradient into columns;
    `gather_gradient` lets it into those of the global batch.
    """
    gather = distributed.all_gather_with_grad if gather_gradient else distributed.all_gather
    images, texts = (x if gather_gradient else x.detach() for x in (gather(image), gather(text)))
    ids = distributed.all_gather(image_id)
    # The queue is overwritten in place after this loss, so the graph keeps copies.
    columns_text = torch.cat([texts, queue.text.clone()])
    columns_image = torch.cat([images, queue.image.clone()])
    column_ids = torch.cat([ids, queue.image_id])
    filled = torch.cat([torch.ones_like(ids, dtype=torch.bool), queue.filled()])

    target = torch.arange(len(image), device=image.device) + distributed.rank() * len(image)
    same = image_id[:, None] == column_ids[None]
    dropped = (same | ~filled).scatter(1, target[:, None], False)
    to_text = image @ columns_text.T / temperature
    to_image = text @ columns_image.T / temperature
    losses = [F.cross_entropy(x.masked_fill(dropped, -torch.inf), target) for x in (to_text, to_image)]
    loss = (losses[0] + losses[1]) / 2
    size = len(ids)
    contrast = ContrastiveOutput(to_text[:, :size].detach(), to_image[:, :size].detach(), same[:, :size])
    return loss, contrast


def negative_weights(logits: Tensor, same_image: Tensor, hard: bool) -> Tensor:
    """Unnormalised probabilities (B,G) of drawing each column as a negative: the softmax of the contrastive
    logits + 1e-9 (`hard`), or uniform; 0 for pairs of the same image."""
    weights = logits.float().softmax(dim=-1) + 1e-9 if hard else torch.ones_like(logits)
    return weights.masked_fill(same_image, 0.0)


def sample_columns(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One column per row by inverting the cumulative weights (B,G) at `uniform` (B,) in [0,1) -> index (B,)
    int64 and valid (B,) bool. Rows whose weights are all 0 (every column shows their image) are not valid.

    The draw depends on the row alone, so it is the same for any number of ranks and after a resume.
    """
    cumulative = weights.double().cumsum(dim=-1)
    total = cumulative[:, -1:]
    index = torch.searchsorted(cumulative, uniform.double()[:, None] * total, right=True).squeeze(1)
    # Rounding could step past the end onto a column of weight 0: the last positive column is the limit.
    last = (cumulative < total).sum(dim=-1)
    return torch.minimum(index, last), total.squeeze(1) > 0
