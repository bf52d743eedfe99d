"""Heads at image level (FIBER §3; names of the release in weights/official.py).

Shape letters: B batch, L text length, N image tokens, T text width, C image width, H head width.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FUSED_PAIR = 2  # pooled vectors of one fused pass: text and image


class Pooling(nn.Module):
    """Both modalities to a common width H and to one vector each: text pools its first token, the image the mean
    over its tokens; linear and tanh. Contrastive and fused features have a pooling each."""

    def __init__(self, text_width: int, image_width: int, width: int) -> None:
        super().__init__()
        self.text_transform = nn.Linear(text_width, width)
        self.image_transform = nn.Linear(image_width, width)
        self.text_pooler = nn.Linear(width, width)
        self.image_pooler = nn.Linear(width, width)

    def text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B,L,T) -> transformed tokens (B,L,H), pooled (B,H)."""
        tokens = self.text_transform(tokens)
        return tokens, self.text_pooler(tokens[:, 0]).tanh()

    def image(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B,N,C) -> transformed tokens (B,N,H), pooled (B,H)."""
        tokens = self.image_transform(tokens)
        return tokens, self.image_pooler(tokens.mean(1)).tanh()


class MlmHead(nn.Module):
    """BERT transform (dense, GELU, LayerNorm eps 1e-12) and an untied decoder; captioning uses it too."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.decoder = nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """(...,H) -> logits (...,V)."""
        return self.decoder(self.norm(F.gelu(self.dense(tokens))))


class Classifier(nn.Sequential):
    """Linear, LayerNorm, GELU, Linear: answers of VQA, truth of NLVR2, entailment."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, classes))


class Temperature(nn.Module):
    """Learned contrastive temperature, initially 0.07. The clamp is functional: an optimizer with fp32 masters
    would undo one in place."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([0.07]))

    def forward(self) -> Tensor:
        """(1,) fp32 in [0.001, 1]."""
        return self.value.float().clamp(0.001, 1.0)


class CoarseHeads(nn.Module):
    """All heads of a model at image level. `classifiers` maps the name of an answer head to its number of classes; a
    head reads `vectors[name]` pooled vectors of H: 2 of a fused pair (the default), 4 of two pairs, 1 of an image."""

    def __init__(
        self,
        *,
        text_width: int,
        image_width: int,
        width: int,
        vocab_size: int,
        classifiers: Mapping[str, int],
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.cross_modal = Pooling(text_width, image_width, width)
        self.contrastive = Pooling(text_width, image_width, width)
        self.temperature = Temperature()
        self.mlm = MlmHead(width, vocab_size)
        self.itm = nn.Linear(2 * width, 2)
        self.classes, vectors = dict(classifiers), vectors or {}
        self.classifiers = nn.ModuleDict()
        for name, classes in classifiers.items():
            self.classifiers[name] = Classifier(vectors.get(name, FUSED_PAIR) * width, 2 * width, classes)
