"""Head outputs -> detections: token scores to class scores, per-level selection, decoding, class-aware NMS.

Shape letters: B images, A anchors of a level, L text length, K classes of the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from fiber.fine.boxes import clip, decode
from fiber.fine.dyhead import HeadOutput


@dataclass(frozen=True)
class BoxSelection:
    """How detections are chosen. `threshold` applies to the class score before centerness, strictly;
    `top` limits the (anchor, class) pairs per level; `nms` suppresses IoU above it, inclusive pixels (+1)."""

    threshold: float = 0.05
    top: int = 1000
    nms: float = 0.6
    keep: int = 100


DETECTION = BoxSelection()  # the release's settings for detection and phrase grounding ...
REFERRING = BoxSelection(threshold=0.0, top=3000)  # ... and for referring expressions


@dataclass(frozen=True)
class Detections:
    """Of one image, best first: boxes (D,4) xyxy pixels of the network's input image, scores (D,) in 0..1, labels
    (D,) int64 indices of the prompt's classes."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def best(self, keep: int) -> "Detections":
        """The `keep` highest scores, best first; of equal scores the earlier one."""
        order = self.scores.argsort(descending=True, stable=True)[:keep]
        return Detections(self.boxes[order], self.scores[order], self.labels[order])

    @classmethod
    def cat(cls, parts: Sequence["Detections"]) -> "Detections":
        """All detections of several prompts on one image, in order; labels must already be global."""
        return cls(*(torch.cat([getattr(p, f) for p in parts]) for f in ("boxes", "scores", "labels")))


def class_scores(token_logits: Tensor, class_tokens: Tensor) -> Tensor:
    """Scores (...,K) float32 in 0..1 from token logits (...,L) and the tokens that each class owns, (K,L) bool: the
    mean sigmoid over the tokens of a class (GLIP, Li et al., CVPR 2022). Raises ValueError where a class owns no
    token: its score would silently be 0 everywhere.
    """
    owned = class_tokens.sum(1)
    if (owned == 0).any():
        empty = (owned == 0).nonzero().flatten().tolist()
        raise ValueError(f"classes {empty} of the prompt own no token; build the prompt in chunks that fit the text")
    return token_logits.float().sigmoid() @ (class_tokens.float() / owned[:, None]).T


def detections(
    output: HeadOutput,
    anchors: Sequence[Tensor],
    class_tokens: Sequence[Tensor],
    sizes: Tensor,
    selection: BoxSelection,
) -> list[Detections]:
    """Detections of every image of a batch, best first. Raises ValueError where a class owns no token.

    anchors: per level (A,4); class_tokens: per image (K,L) bool; sizes (B,2) int64 (h, w) of each image before
    padding, to which boxes are clipped.
    """
    batch = []
    for image, (tokens, size) in enumerate(zip(class_tokens, sizes.tolist(), strict=True)):
        levels = zip(output.deltas, output.centerness, output.tokens, anchors, strict=True)
        parts = [
            _select_level(d[image], c[image], class_scores(t[image], tokens), a, selection) for d, c, t, a in levels
        ]
        every = Detections.cat(parts)
        every = Detections(clip(every.boxes, size), every.scores.sqrt(), every.labels)
        batch.append(suppress(every, selection.nms, selection.keep))
    return batch


def _select_level(
    deltas: Tensor, centerness: Tensor, scores: Tensor, anchors: Tensor, selection: BoxSelection
) -> Detections:
    """Best (anchor, class) pairs of one level of one image, score = class score * centerness (not yet rooted)."""
    kept = scores > selection.threshold
    ranked = torch.where(kept, scores * centerness.float().sigmoid()[:, None], -1.0).flatten()
    best, index = ranked.topk(min(selection.top, ranked.numel()))
    best, index = best[best >= 0], index[best >= 0]
    anchor, label = index // scores.shape[1], index % scores.shape[1]
    return Detections(decode(deltas[anchor], anchors[anchor]), best, label)


def suppress(every: Detections, overlap: float, keep: int | None = None) -> Detections:
    """Non-maximum suppression within each class, of IoU above `overlap`, then the best `keep`, best first.

    Moving the far corners out by one turns torchvision's edge convention into the inclusive one; moving each class
    to a region of its own makes one call serve all classes. In float64, so that neither move rounds an IoU.
    """
    if len(every.boxes) == 0:
        return every
    boxes = every.boxes.double()
    apart = (boxes.max() + 2) * every.labels[:, None]
    moved = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0]) + apart
    keep = nms(moved, every.scores.double(), overlap)[:keep]
    return Detections(every.boxes[keep], every.scores[keep], every.labels[keep])
