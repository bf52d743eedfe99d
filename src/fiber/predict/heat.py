"""What each word or phrase looked at: the attention that text pays to the image in the fused layers.

In every fused pair the text layer asks the image (`TextToImage`): each token spreads a weight of 1 over the places of
the image. The map of a word is the mean over its tokens, heads and layers, each layer counted by its open gate; that
of a phrase the mean over the tokens of its words. It says where the model looked, not why it decided.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fiber.backbone.attention import split_heads
from fiber.backbone.fusion import TextToImage
from fiber.data.text import encode
from fiber.fine.inference import fit
from fiber.images.draw import contact_sheet
from fiber.images.resize import resize_pil
from fiber.predict.base import TaskError
from fiber.predict.sources import ImageFile, InputImage, open_image

if TYPE_CHECKING:
    from fiber.predict.image import CoarsePredictor
    from fiber.predict.region import FinePredictor

MULTIPLE = 32  # pixels that a side is padded to
STRIDES = (4, 8, 16, 32)  # px of the input per place, by stage


RawImage = str | Path | ImageFile | InputImage | Image.Image | np.ndarray


@dataclass(frozen=True)
class WordHeat:
    """`word` (or phrase), its characters [start, end) of the text, and the share of its attention that each place of
    the upright image gets: float32 (rows, columns), sum 1, all equal where no layer looks (closed gates)."""

    word: str
    span: tuple[int, int]
    heat: np.ndarray


def word_heat(
    predictor: CoarsePredictor | FinePredictor,
    image: RawImage,
    text: str,
    spans: Sequence[tuple[int, int]] | None = None,
) -> list[WordHeat]:
    """A map of every word of `text` (or of its characters [start, end) in each of `spans`) that the model reads.
    Raises ValueError for an empty text, ImageError, TaskError for a model without fusion."""
    if not text.strip():
        raise ValueError("the text is empty")
    opened = open_image(image).image
    config, model = predictor.config, predictor.model
    ids, mask = (torch.from_numpy(row)[None].to(predictor.device) for row in _tokens(predictor, text))
    if config.stage == "coarse":
        pixels = resize_pil(opened, config.image_size)[None]
        seen = padded = tuple(pixels.shape[-2:])
        prefixes: tuple[Tensor, ...] = (pixels.to(predictor.device),)
    else:
        longest = config.max_image_size or 2 * config.image_size
        pixels = fit(np.asarray(opened), config.image_size, longest)[None]
        seen = tuple(pixels.shape[-2:])
        padded = tuple(-(-side // MULTIPLE) * MULTIPLE for side in seen)
        pixels = F.pad(pixels, (0, padded[1] - seen[1], 0, padded[0] - seen[0]))
        prefixes = pixels.to(predictor.device), torch.tensor([seen], device=predictor.device)
    with _looks(model) as looks, torch.no_grad():
        model.fuse(model.image_prefix(*prefixes), model.text_prefix(ids, mask))
    if not looks:
        raise TaskError("this model fuses nothing: there is no attention to show")
    total, gates = torch.zeros(0), 0.0
    rows, columns = (-(-side // STRIDES[0]) for side in padded)
    for gate, weights in looks:  # (L, N) of each layer, brought to the finest grid
        grid = _grid(weights.shape[1], padded)
        fine = F.interpolate(weights.unflatten(1, grid)[None], size=(rows, columns), mode="bilinear")[0]
        total = gate * fine if not len(total) else total + gate * fine
        gates += gate
    total = total[:, : -(-seen[0] // STRIDES[0]), : -(-seen[1] // STRIDES[0])]
    if not gates:
        total = torch.ones_like(total)
    return [
        WordHeat(text[start:end], (start, end), _shares(total[places].mean(0)))
        for (start, end), places in _places(
            predictor, text, _words(text) if spans is None else spans, int(mask.sum())
        )
    ]


def heat_sheet(
    predictor: CoarsePredictor | FinePredictor,
    image: RawImage,
    text: str,
    spans: Sequence[tuple[int, int]] | None = None,
) -> Image.Image:
    """`draw_heat` of `word_heat`. Raises what `word_heat` raises, and TaskError where no word looks anywhere."""
    heats = word_heat(predictor, image, text, spans)
    if all(np.ptp(one.heat) == 0 for one in heats):
        raise TaskError("no word looks at the image: the gates of this model's cross-attention are closed")
    return draw_heat(image, heats)


def draw_heat(image: RawImage, heats: Sequence[WordHeat]) -> Image.Image:
    """One sheet: the image, then for each word the image under its map (dark: not looked at), the word below."""
    opened = open_image(image).image
    shown = [opened, *(overlay(opened, one.heat) for one in heats)]
    return contact_sheet(shown, ["the image", *(one.word for one in heats)])


def overlay(image: Image.Image, heat: np.ndarray, floor: float = 0.25) -> Image.Image:
    """The image, bright where `heat` (rows, columns) is highest and at `floor` of its light where it is least."""
    spread = heat.max() - heat.min()
    scaled = (heat - heat.min()) / spread if spread > 0 else np.ones_like(heat)
    light = Image.fromarray((255 * scaled).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    factor = floor + (1 - floor) * np.asarray(light, dtype=np.float32)[:, :, None] / 255
    return Image.fromarray((np.asarray(image.convert("RGB"), dtype=np.float32) * factor).astype(np.uint8))


@contextmanager
def _looks(model: nn.Module) -> Iterator[list[tuple[float, Tensor]]]:
    """Collects of every layer in which the text asks the image: its gate, and weights (L, N) over the image, mean of
    the heads, fp32 on the CPU."""
    looks: list[tuple[float, Tensor]] = []

    def look(layer: TextToImage, inputs: tuple[Any, ...], _: Tensor) -> None:
        attended, (key, _) = inputs
        query = split_heads(layer.query(attended), layer.heads)
        weights = ((query.float() * query.shape[-1] ** -0.5) @ key.float().transpose(-2, -1)).softmax(-1)
        looks.append((abs(float(layer.gate)), weights.mean(1)[0].cpu()))

    hooks = [part.register_forward_hook(look) for part in model.modules() if isinstance(part, TextToImage)]
    try:
        yield looks
    finally:
        for hook in hooks:
            hook.remove()


def _tokens(predictor: CoarsePredictor | FinePredictor, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of the text without padding, as the model reads it."""
    ids, mask = encode(predictor.tokenizer, text, predictor.config.max_text)
    return ids[: mask.sum()], mask[: mask.sum()]


def _grid(places: int, padded: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of a stage with so many places."""
    grids = [tuple(-(-side // stride) for side in padded) for stride in STRIDES]
    return next((rows, columns) for rows, columns in grids if rows * columns == places)


def _words(text: str) -> Iterator[tuple[int, int]]:
    """Characters [start, end) of each word: between blanks, without the punctuation around it."""
    for word in re.finditer(r"\S+", text):
        bare = word[0].strip(".,;:!?\"'()[]")
        if bare:
            first = word.start() + word[0].index(bare)
            yield first, first + len(bare)


def _places(
    predictor: CoarsePredictor | FinePredictor, text: str, spans: Iterable[tuple[int, int]], tokens: int
) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Every span that has tokens among the first `tokens`, and the places of these."""
    offsets = predictor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"][: tokens - 1]
    for start, end in spans:
        if places := [n for n, (a, b) in enumerate(offsets) if a < end and b > start and a < b]:
            yield (start, end), places


def _shares(heat: Tensor) -> np.ndarray:
    return (heat / heat.sum()).numpy().astype(np.float32)
