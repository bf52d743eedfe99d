"""Head outputs -> detections: token scores to class scores, per-level selection, decoding, class-aware NMS.

Shape letters: B images, P pairs of image and prompt, A anchors of a level, L text length, K classes of a prompt, T
candidates of all levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fiber.fine.boxes import clip, decode
from fiber.fine.dyhead import HeadOutput
from fiber.processor import nms

AT_ONCE = 16384  # boxes that a card suppresses in one call; its time and memory (34 MB) grow with the square


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
    def cat(cls, parts: Sequence["Detections"], dim: int = 0) -> "Detections":
        """All detections of several parts, in order; labels must already be global."""
        return cls(*(torch.cat([getattr(p, f) for p in parts], dim) for f in ("boxes", "scores", "labels")))


def class_weights(class_tokens: Sequence[Tensor]) -> Tensor:
    """(P,K,L) float32 from the tokens that each class of P prompts owns, (K_p,L) bool each: of every class, the equal
    shares of its tokens; 0 on the classes that a prompt has less than K. Raises ValueError where a class owns no
    token: its score would silently be 0 everywhere.
    """
    weights = []
    for tokens in class_tokens:
        owned = tokens.sum(1, keepdim=True)
        if empty := (owned == 0).nonzero()[:, 0].tolist():
            raise ValueError(f"classes {empty} of the prompt own no token; ask in chunks that fit the text")
        weights.append(tokens.float() / owned)
    return pad_sequence(weights, batch_first=True)


def class_scores(token_logits: Tensor, weights: Tensor) -> Tensor:
    """Scores (...,A,K) float32 in 0..1 from token logits (...,A,L) and `class_weights` (...,K,L): the mean sigmoid
    over the tokens of a class (GLIP, Li et al., CVPR 2022)."""
    return token_logits.float().sigmoid() @ weights.mT


def candidates(output: HeadOutput, anchors: Sequence[Tensor], weights: Tensor, selection: BoxSelection) -> Detections:
    """The best (anchor, class) pairs of every level: Detections of (B,T) entries. Their score is class score *
    centerness (not yet rooted), or -1 of what is none. `weights`: of `class_weights`. No wait: the size is fixed."""
    parts = []
    for deltas, centerness, tokens, level in zip(*output, anchors, strict=True):
        scores = class_scores(tokens, weights)
        central = scores * centerness.float().sigmoid()[..., None]
        ranked = central.where(scores > selection.threshold, -1.0).flatten(1)
        best, index = ranked.topk(min(selection.top, ranked.shape[1]))
        anchor, label = index // scores.shape[2], index % scores.shape[2]
        chosen = deltas.gather(1, anchor[..., None].expand(-1, -1, 4))
        parts.append(Detections(decode(chosen, level[anchor]), best, label))
    return Detections.cat(parts, dim=1)


def choose(found: Detections, sizes: Tensor, classes: int, selection: BoxSelection) -> list[Detections]:
    """`candidates` of P pairs of image and prompt, (P,T), to the detections of each, best first, on the CPU.

    sizes (P,2): to which boxes are clipped. classes: more than any label. On a card the pairs are suppressed in one
    call, and the host waits twice, whatever their number: for suppression and for the result, with which it learns
    how many candidates there were. More than `AT_ONCE` are chosen again, by halves of the pairs. On the CPU, where
    suppression costs the square, pair by pair.
    """
    scores, each = found.scores.flatten(), found.scores.shape[1]
    if scores.is_cuda:  # a fixed number, in order; with some that are none, each like the other, so that one is left
        slots = scores.topk(min(max(AT_ONCE, each), len(scores))).indices.sort().values
        counts = [len(slots)]
    else:
        slots = (scores >= 0).nonzero().flatten()
        counts = torch.bincount(slots // each, minlength=len(sizes)).tolist()
    pair, none = slots // each, scores[slots] < 0
    boxes = clip(found.boxes.flatten(0, 1)[slots], sizes[pair]).masked_fill(none[:, None], 0.0)
    root = scores[slots].sqrt().masked_fill(none, -1.0)
    label = (found.labels.flatten()[slots] + classes * pair).masked_fill(none, -1)
    columns = (column.split(counts) for column in (boxes, root, label))
    kept = Detections.cat([suppress(Detections(*part), selection.nms) for part in zip(*columns, strict=True)])
    table = torch.cat([kept.boxes.double(), kept.scores.double()[:, None], kept.labels.double()[:, None]], 1)
    table = torch.cat([table, (scores >= 0).sum().double().expand(1, 6)]).cpu()
    if table[-1, 0] > len(slots):
        halves = zip(*(x.chunk(2) for x in (found.boxes, found.scores, found.labels, sizes)), strict=True)
        return [one for *part, of in halves for one in choose(Detections(*part), of, classes, selection)]
    of, label = table[:-1, 5].long() // classes, table[:-1, 5].long() % classes
    result = []
    for number in range(len(sizes)):
        rows = (of == number).nonzero().flatten()[: selection.keep]
        result.append(Detections(table[rows, :4].to(boxes.dtype), table[rows, 4].to(root.dtype), label[rows]))
    return result


def suppress(every: Detections, overlap: float) -> Detections:
    """Non-maximum suppression within each class, of IoU above `overlap`, best first.

    Moving the far corners out by one turns torchvision's edge convention into the inclusive one; moving each class
    to a region of its own makes one call serve all classes. In float64, so that neither move rounds an IoU.
    """
    if len(every.boxes) == 0:
        return every
    boxes = every.boxes.double()
    apart = (boxes.max() + 2) * every.labels[:, None]
    moved = torch.cat([boxes[:, :2], boxes[:, 2:] + 1], 1) + apart
    keep = nms(moved, every.scores.double(), overlap)
    return Detections(every.boxes[keep], every.scores[keep], every.labels[keep])
