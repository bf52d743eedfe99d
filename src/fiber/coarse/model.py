"""The model at image level: fusion backbone and heads, in terms of prefixes.

Shape letters: B batch, L text length, N image tokens, H head width, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.backbone.fusion import DecoderCache, FusionBackbone
from fiber.backbone.image import PixelNorm
from fiber.backbone.states import ImageState, TextState
from fiber.coarse.heads import CoarseHeads


@dataclass(frozen=True)
class FusedFeatures:
    """Heads' view of a fused pass: text (B,L,H), image (B,N,H), cls (B,2H) = [pooled text; pooled image]."""

    text: Tensor
    image: Tensor
    cls: Tensor


class CoarseModel(nn.Module):
    """Dual encoder, fusion encoder and encoder-decoder over one backbone (FIBER §3.1)."""

    def __init__(
        self,
        backbone: FusionBackbone,
        *,
        head_width: int,
        vocab_size: int,
        classifiers: Mapping[str, int] | None = None,
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        """`classifiers`: answer heads and their numbers of classes; `vectors`: how many pooled vectors
        each reads, where it is not the 2 of a fused pair."""
        super().__init__()
        self.backbone = backbone
        self.heads = CoarseHeads(
            text_width=backbone.text.width,
            image_width=backbone.image.widths[-1],
            width=head_width,
            vocab_size=vocab_size,
            classifiers=classifiers or {},
            vectors=vectors,
        )
        self.pixels = PixelNorm()

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 RGB (B,3,S,S) -> ImageNet-normalised in the dtype of the weights; float input is taken as
        normalised already."""
        pixels = self.pixels(images) if images.dtype == torch.uint8 else images
        return pixels.to(self.heads.itm.weight.dtype)

    def image_prefix(self, images: Tensor) -> ImageState:
        """uint8 or normalised images (B,3,S,S) -> prefix."""
        return self.backbone.image_prefix(self.normalise(images))

    def text_prefix(self, ids: Tensor, mask: Tensor) -> TextState:
        """ids, mask (B,L) int64, mask 1 = token -> prefix."""
        return self.backbone.text_prefix(ids, mask)

    def image_embedding(self, state: ImageState) -> Tensor:
        """Contrastive feature of the unfused image: (B,H), unit length, fp32."""
        pooled = self.heads.contrastive.image(self.backbone.finish_image(state))[1]
        return F.normalize(pooled.float(), dim=-1)

    def text_embedding(self, state: TextState) -> Tensor:
        """Contrastive feature of the unfused text: (B,H), unit length, fp32."""
        pooled = self.heads.contrastive.text(self.backbone.finish_text(state))[1]
        return F.normalize(pooled.float(), dim=-1)

    def fuse(self, image: ImageState, text: TextState) -> FusedFeatures:
        """Fused pass: row b of both states is one pair of B."""
        fused = self.backbone.fuse(image, text)
        text_tokens, text_cls = self.heads.cross_modal.text(fused.text)
        image_tokens, image_cls = self.heads.cross_modal.image(fused.image)
        return FusedFeatures(text_tokens, image_tokens, torch.cat([text_cls, image_cls], dim=-1))

    def match_logits(self, image: ImageState, text: TextState) -> Tensor:
        """Image-text matching of aligned prefixes: (B,2) fp32, class 1 = match."""
        return self.heads.itm(self.fuse(image, text).cls).float()

    def caption_tokens(self, ids: Tensor, mask: Tensor | None, cache: DecoderCache) -> Tensor:
        """Causal pass that continues `cache` with ids (B,L) -> transformed text tokens (B,L,H)."""
        return self.heads.cross_modal.text_transform(self.backbone.decode(ids, cache, mask))
