"""What is in a batch: every key with its shape, its dtype and who adds it. A task's module is typed on one of these.

Shape letters: B samples of a micro-batch, S image side, L text length, A answers, K captions drawn per image, T
tokens of each, (H,W) padded size, N boxes of the whole micro-batch, P positive pairs of an anchor and a box.

Tensors are on the CPU, images pinned where there is a card, until `training.loop.fetch` moves them.
"""

from __future__ import annotations

from typing import Any, TypedDict

from torch import Tensor


class StreamBatch(TypedDict, total=False):
    """What every batch has, besides what its samples make."""

    keys: list[str]  # B keys in their shards (data/loader.py)
    position: Tensor  # (B,) int64, place in the training order, or number in an evaluation set (data/loader.py)
    image_id: Tensor  # (B,) int64, hash of the record's image_id: equal for samples of one image (data/loader.py)
    uniform: Tensor  # (B,2) float64 in [0,1), of (seed, position) alone: a draw per negative (data/loader.py)
    faults: list[Any]  # data.loader.Fault of samples and boxes that could not be used (data/loader.py)
    data_seconds: float  # what the training process waited for it (data/loader.py)
    step: int  # the update it belongs to (training/loop.py)
    loss_normalisers: dict[str, Tensor]  # () each: what an averaged loss is divided by (training/loop.py)


class TextBatch(StreamBatch, total=False):
    """Texts and their images: questions, statements, hypotheses, retrieval, classification."""

    images: Tensor  # (B,3,S,S) uint8 RGB; (B,2,3,S,S) of pairs (data/samples/text.py)
    ids: Tensor  # (B,L) int64 token ids, padded (data/samples/text.py)
    mask: Tensor  # (B,L) int64, 1 at real tokens (data/samples/text.py)
    text: list[str]  # B texts (data/samples/text.py)
    targets: Tensor  # (B,A) float32 in [0,1], score of every answer (tasks/vqa.py)
    answers_outside: Tensor  # (B,) int64, given answers that are not in the vocabulary (tasks/vqa.py)
    labels: Tensor  # (B,) int64, class of each text (tasks/classifier.py)
    annotation: list[dict[str, Any]]  # B annotations, in evaluation (data/samples/text.py)
    image: list[str]  # B image_ids of the records, in evaluation (data/samples/text.py)


class PretrainBatch(TextBatch, total=False):
    """Image-text pairs of coarse pre-training."""

    masked_ids: Tensor  # (B,L) int64, ids with some replaced for masked language modelling (tasks/pretrain.py)
    mlm_labels: Tensor  # (B,L) int64, the true id at masked positions, -100 elsewhere (tasks/pretrain.py)


class CaptionBatch(TextBatch, total=False):
    """Images and captions; the last three only where the objective asks for them."""

    references: list[list[str]]  # B lists of all captions of the image (evaluation/caption_samples.py)
    draws: Tensor  # (B,K,T) float64 in [0,1), one for each token that may be drawn (evaluation/caption_samples.py)
    domain: list[str]  # B domains of NoCaps, or "", in evaluation (evaluation/caption_samples.py)


class RegionBatch(StreamBatch, total=False):
    """Images of any sizes with boxes, and the tokens that each box answers to (tasks/region_samples.py)."""

    images: Tensor  # (B,3,H,W) uint8 RGB, zero at the bottom and right; H, W multiples of 32
    sizes: Tensor  # (B,2) int64, un-padded (h, w)
    ids: Tensor  # (B,L) int64
    mask: Tensor  # (B,L) int64
    boxes: Tensor  # (N,4) float32 xyxy, pixels of the resized image
    box_image: Tensor  # (N,) int64, row of the batch
    box_tokens: Tensor  # (N,L) bool, tokens of the box's phrase
    texts: list[str]  # B captions
    assignment: Any  # fine.atss.Assignment of the boxes to anchors (tasks/regions.py, once per micro-batch)
