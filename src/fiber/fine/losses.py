"""Losses of the fine stage: token alignment, box, centerness (those of GLIP on an ATSS head).

All sums run over the whole global batch: normalisers are averaged over its parts (ranks and micro-batches), so that
the mean of the parts' losses, which is what averaging gradients computes, is the loss of the undivided batch. (The
one exception is the floor of 1: a batch with fewer positives than parts is divided by the number of parts.)

Shape letters: B images, A anchors of all levels, L text length, N boxes of the batch, P positive anchors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.fine.atss import assign
from fiber.fine.boxes import centres, decode, giou
from fiber.fine.dyhead import HeadOutput
from fiber.processor import focal_loss

ALPHA, GAMMA = 0.25, 2.0  # focal loss (Lin et al., ICCV 2017)


@dataclass(frozen=True)
class LossWeights:
    """Factor of each loss in the total."""

    token: float = 1.0
    box: float = 2.0
    centerness: float = 1.0


PUBLISHED_WEIGHTS = LossWeights()


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch, packed: boxes (N,4) float xyxy pixels, image (N,) int64 row of the batch that each
    box belongs to, tokens (N,L) bool or 0/1, 1 on the tokens of the box's phrase. N = 0 is legal."""

    boxes: Tensor
    image: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Assignment:
    """Positive anchors of a batch: image (P,), anchor (P,) and target (P,) indices, int64, ordered by (image,
    anchor); target indexes `Targets`."""

    image: Tensor
    anchor: Tensor
    target: Tensor


def assign_batch(targets: Targets, anchors: Sequence[Tensor], images: int) -> Assignment:
    """ATSS for each of `images` images; anchors: per level (A_l,4), shared by the images."""
    index = assign(targets.boxes, targets.image, anchors, images)
    image, anchor = (index >= 0).nonzero(as_tuple=True)
    return Assignment(image, anchor, index[image, anchor])


def centerness(boxes: Tensor, anchors: Tensor) -> Tensor:
    """sqrt(min(l,r)/max(l,r) * min(t,b)/max(t,b)) of aligned pairs (P,4) -> (P,): how central the anchor's centre
    lies in its box; l, t, r, b are the distances from the centre to the sides."""
    centre = centres(anchors)
    near, far = centre - boxes[:, :2], boxes[:, 2:] - centre
    return (torch.minimum(near, far) / torch.maximum(near, far)).prod(1).clamp(min=0).sqrt()


def token_targets(assignment: Assignment, targets: Targets, shape: torch.Size, limit: int) -> Tensor:
    """(B,A,L) float32: the matched phrase's tokens at positive anchors; "no object" at the others, which is the
    last column of a caption that fills the text `limit`, and nothing where texts are padded to less."""
    wanted = torch.zeros(shape, device=targets.tokens.device)
    if shape[-1] == limit:
        wanted[..., -1] = 1
    wanted[assignment.image, assignment.anchor] = targets.tokens[assignment.target].float()
    return wanted


def totals(assignment: Assignment, targets: Targets, anchors: Sequence[Tensor]) -> Tensor:
    """(2,) float32: the number of positives, and the sum of their centerness targets. Losses are divided by the mean
    of these over the micro-batches and ranks of a step."""
    central = centerness(targets.boxes[assignment.target].float(), torch.cat(list(anchors))[assignment.anchor])
    return torch.stack([central.new_full((), len(central)), central.sum()])


def detection_losses(
    output: HeadOutput,
    anchors: Sequence[Tensor],
    mask: Tensor,
    targets: Targets,
    assignment: Assignment,
    mean_totals: Tensor,
    limit: int,
) -> dict[str, Tensor]:
    """Unweighted losses {"token", "box", "centerness"}, 0-dim float32 with graph.

    anchors per level (A_l,4); mask (B,L) 1 = token; mean_totals (2,): `totals`, averaged over ranks; `limit`: the
    model's text limit, see `token_targets`. With (P, C) = mean_totals and N = max(P, 1): token = focal sum over
    attended tokens / N; box = sum c(1 - GIoU) / C, c the centerness target; centerness = BCE sum / N. Without
    positives box and centerness are 0 but keep their graph.
    """
    deltas, centerness_logits, token_logits = (
        torch.cat(levels, 1).float() for levels in (output.deltas, output.centerness, output.tokens)
    )
    positive = (assignment.image, assignment.anchor)
    boxes, matched = targets.boxes[assignment.target].float(), torch.cat(list(anchors))[assignment.anchor]
    central = centerness(boxes, matched)
    count, weight = mean_totals[0].clamp(min=1.0), mean_totals[1].clamp(min=1e-6)

    wanted = token_targets(assignment, targets, token_logits.shape, limit)
    token = focal_loss(token_logits, wanted, mask, ALPHA, GAMMA) / count
    overlap = giou(decode(deltas[positive], matched), boxes)
    box = (central * (1 - overlap)).sum() / weight
    central_loss = F.binary_cross_entropy_with_logits(centerness_logits[positive], central, reduction="sum")
    return {"token": token, "box": box, "centerness": central_loss / count}
