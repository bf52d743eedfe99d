"""The fine stage: a detector of phrases on the fused backbone (FIBER §3).

Shape letters: B images, (H,W) padded image size, C channels, L text length, T text width, A_l anchors of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fiber.backbone.fusion import FusionBackbone
from fiber.backbone.image import PixelNorm
from fiber.backbone.states import ImageState, TextState
from fiber.data.prompts import Prompt
from fiber.fine.boxes import make_anchors
from fiber.fine.dyhead import DynamicHead, HeadOutput
from fiber.fine.fpn import FeaturePyramid
from fiber.fine.postprocess import DETECTION, BoxSelection, Detections, candidates, choose, class_weights
from fiber.recompute import Checkpointing

PROMPT_ROWS = 1000  # positions that prompt tuning can learn, as in the release

Tuning = Literal["full", "frozen_towers", "linear", "prompt"]


@dataclass(frozen=True)
class FineFeatures:
    """Pyramid levels (B,C,H_l,W_l), finest first; the last text states `hidden` (B,L,T); `embedded`, the same with 0
    on padding, which the head aligns with the image."""

    levels: list[Tensor]
    hidden: Tensor
    embedded: Tensor


class FiberDetector(nn.Module):
    """Fused backbone -> pyramid -> dynamic head.

    The backbone needs stage norms and a padded image tower. `anchor_sizes` and `strides` (px) give the levels: one
    per stage of the backbone but the first, the rest by stride-2 convolutions. `text_limit` (tokens) is the length at
    which a caption counts as full, see `losses.token_targets`. Images are RGB; imports of the released weights, made
    for BGR, reverse the channels of their patch embedding. Raises ValueError on sizes that do not fit together.
    """

    def __init__(
        self,
        backbone: FusionBackbone,
        *,
        channels: int = 256,
        head_channels: int = 256,
        head_blocks: int = 6,
        anchor_sizes: Sequence[float] = (64, 128, 256, 512, 1024),
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        groups: int = 16,
        drop_block: float = 0.3,
        log_scale: float = 0.0,
        text_limit: int = 256,
        prompt_tuning: bool = False,
        checkpointing: Checkpointing = False,
    ) -> None:
        super().__init__()
        widths = backbone.image.widths[1:]
        expected = tuple(8 * 2**i for i in range(len(strides)))
        if tuple(strides) != expected or len(anchor_sizes) != len(strides) or len(strides) < len(widths):
            raise ValueError(
                f"anchor sizes {tuple(anchor_sizes)} on strides {tuple(strides)}: need one size per stride, strides "
                f"8, 16, 32, ... and at least {len(widths)} of them for this image tower"
            )
        if backbone.image.stage_norms is None or not backbone.image.padded:
            raise ValueError("the fine stage needs SwinTower(padded=True, stage_norms=True)")
        self.backbone = backbone
        self.fpn = FeaturePyramid(widths, channels, len(strides) - len(widths), drop_block)
        self.head = DynamicHead(
            backbone.text.width,
            levels=len(strides),
            in_channels=channels,
            channels=head_channels,
            blocks=head_blocks,
            groups=groups,
            log_scale=log_scale,
            checkpointing=checkpointing,
        )
        self.prompt = nn.Parameter(torch.zeros(PROMPT_ROWS, backbone.text.width)) if prompt_tuning else None
        self.anchor_sizes, self.strides, self.text_limit = tuple(anchor_sizes), tuple(strides), text_limit
        self.pixels = PixelNorm()

    def forward(self, images: Tensor, sizes: Tensor, ids: Tensor, mask: Tensor) -> tuple[HeadOutput, list[Tensor]]:
        """images (B,3,H,W) (see `image_prefix`), sizes (B,2) int64 un-padded (h, w), ids and mask (B,L) int64 (mask
        1 = token) -> head outputs and anchors (A_l,4) of every level."""
        return self.predict(self.features(images, sizes, ids, mask))

    def features(self, images: Tensor, sizes: Tensor, ids: Tensor, mask: Tensor) -> FineFeatures:
        """Pyramid and text features of images (B,3,H,W) and their texts (B,L); arguments as `forward`."""
        return self.fuse(self.image_prefix(images, sizes), self.text_prefix(ids, mask))

    def image_prefix(self, images: Tensor, sizes: Tensor) -> ImageState:
        """Image tower up to the first fused block, for images (B,3,H,W). uint8 RGB is normalised here and set to 0
        beyond `sizes` (B,2); float is taken as normalised and padded with 0 already."""
        if images.dtype == torch.uint8:
            images = self.pixels(images)
            row = torch.arange(images.shape[2], device=images.device)
            column = torch.arange(images.shape[3], device=images.device)
            inside = (row < sizes[:, :1])[:, :, None] & (column < sizes[:, 1:])[:, None]
            images = images * inside[:, None]
        return self.backbone.image_prefix(images.to(self.head.bias.dtype))

    def text_prefix(self, ids: Tensor, mask: Tensor) -> TextState:
        """Text tower up to the first fused layer for ids and mask (B,L) int64, with the learned prompt if any."""
        return self.backbone.text_prefix(ids, mask, self.prompt)

    def fuse(self, image: ImageState, text: TextState) -> FineFeatures:
        """Fused pairs and pyramid: row b of both states is one pair of B."""
        fused = self.backbone.fuse(image, text)
        embedded = fused.text * text.mask[..., None].to(fused.text.dtype)
        return FineFeatures(self.fpn(fused.stages[1:]), fused.text, embedded)

    def predict(self, features: FineFeatures) -> tuple[HeadOutput, list[Tensor]]:
        """Head outputs and anchors (A_l,4) of every level, pixels of the padded image."""
        grids = [(level.shape[-2], level.shape[-1]) for level in features.levels]
        anchors = make_anchors(grids, self.anchor_sizes, self.strides, features.hidden.device)
        return self.head(features.levels, features.embedded), anchors

    def anchors(self, images: Tensor) -> list[Tensor]:
        """Anchors (A_l,4) of every level for images (B,3,H,W), without a forward pass: each level rounds up."""
        height, width = images.shape[-2:]
        grids = [(-(-height // stride), -(-width // stride)) for stride in self.strides]
        return make_anchors(grids, self.anchor_sizes, self.strides, images.device)

    @torch.no_grad()
    def detect(
        self,
        images: Tensor,
        sizes: Tensor,
        prompts: Sequence[Sequence[Prompt]],
        selection: BoxSelection = DETECTION,
        *,
        keep: int | None = None,
        pairs: int = 8,
        text: TextState | None = None,
    ) -> list[Detections]:
        """Detections of each image (B,3,H,W), of un-padded `sizes` (B,2), for its own list of prompts (the chunks of
        a class list, or one sentence), best first, on the CPU, boxes in pixels of `images`.

        Labels are `Prompt.classes`. Each image and each distinct prompt is prefixed once; `pairs` (image, prompt)
        pairs go through fusion and head at a time. Every prompt yields up to `selection.keep` detections; `keep` cuts
        their union. `text`: `encode_prompts` of the distinct prompts in the order in which they first occur, where
        the same prompts serve many calls.
        """
        image_state = self.image_prefix(images, sizes)
        unique = list(dict.fromkeys(p for of_image in prompts for p in of_image))
        row_of = {p: row for row, p in enumerate(unique)}
        text = self.encode_prompts(unique) if text is None else text
        weights = class_weights([p.token_map[:, : text.mask.shape[1]] for p in unique]).to(images.device)
        jobs = [(image, p) for image, of_image in enumerate(prompts) for p in of_image]
        rows = torch.tensor([(image, row_of[p]) for image, p in jobs]).to(images.device, non_blocking=True)
        parts = []
        for image, prompt in (chunk.T for chunk in rows.split(pairs)):
            output, anchors = self.predict(self.fuse(image_state[image], text[prompt]))
            parts.append(candidates(output, anchors, weights[prompt], selection))
        found = choose(Detections.cat(parts), sizes[rows[:, 0]], weights.shape[1], selection)
        merged: list[list[Detections]] = [[] for _ in prompts]
        for (number, p), d in zip(jobs, found, strict=True):
            merged[number].append(replace(d, labels=torch.tensor(p.classes)[d.labels]))
        return [d.best(len(d.scores) if keep is None else keep) for d in map(Detections.cat, merged)]

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[Prompt]) -> TextState:
        """Text states of P prompts, tokens (P,L,T); L is the longest of them, which changes nothing."""
        length = int(max(p.mask.sum() for p in prompts))
        columns = (torch.stack([getattr(p, name)[:length] for p in prompts]) for name in ("ids", "mask"))
        return self.text_prefix(*(column.to(self.head.bias.device) for column in columns))

    def tune(self, mode: Tuning, frozen_stages: int = 0) -> None:
        """Choose what trains: "full"; "frozen_towers", fusion, pyramid and head (and the norms between the image
        tower and the pyramid); "linear", the box, centerness and text projections with temperature and biases;
        "prompt", the learned prompt alone. `frozen_stages` > 0 also freezes the patch embedding and that many image
        stages with their merges (the pre-training recipe freezes 1). Raises ValueError on an unknown mode."""
        if mode not in get_args(Tuning):
            raise ValueError(f"unknown tuning mode {mode!r}: choose {', '.join(get_args(Tuning))}")
        if mode == "prompt" and self.prompt is None:
            raise ValueError("prompt tuning needs a model built with prompt_tuning=True")
        head, backbone = self.head, self.backbone
        self.requires_grad_(mode in ("full", "frozen_towers"))
        if mode == "frozen_towers":
            backbone.image.requires_grad_(False)
            backbone.text.requires_grad_(False)
            for norm in backbone.image.stage_norms or ():
                norm.requires_grad_(True)
        if mode == "linear":
            for part in (head.box, head.centerness, head.project_text, head.log_scale, head.token_bias, head.bias):
                part.requires_grad_(True)
        if mode == "prompt" and self.prompt is not None:
            self.prompt.requires_grad_(True)
        if frozen_stages:
            backbone.image.patch_embed.requires_grad_(False)
            for stage in islice(backbone.image.stages, frozen_stages):
                stage.requires_grad_(False)
