"""Samples of the tasks at image level: one text of a record and the image, or the pair, that it speaks of.

Shape letters: S image side, L text length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fiber.config.stage1 import Stage1Config
from fiber.data.records import Sample, annotation, annotation_text
from fiber.data.text import encode
from fiber.errors import SampleFault
from fiber.images.augment import augment, mentions_sides
from fiber.images.codec import decode, decode_pil
from fiber.images.resize import load_image


@dataclass(frozen=True)
class ImageTransform:
    """Encoded bytes -> uint8 (3,S,S). `pil_resize`: decoded and resized by Pillow alone. `augmented`: cropped,
    mirrored and changed at random; images whose text speaks of left or right are mirrored only with `flip_sides`."""

    size: int
    pil_resize: bool = False
    augmented: bool = False
    flip_sides: bool = False

    @classmethod
    def of(cls, config: Stage1Config, *, training: bool) -> ImageTransform:
        """As the run's configuration says; evaluation resizes only."""
        augmented, pil_resize = training and config.finetune.augment, config.data.transform == "pil"
        return cls(config.image_size, pil_resize, augmented, config.finetune.flip_sides)

    def __call__(self, data: bytes, text: str, rng: np.random.Generator) -> Tensor:
        """Raises SampleFault("undecodable_image" | "huge_image")."""
        if not self.augmented:
            return load_image(data, self.size, self.pil_resize)
        image = decode_pil(data) if self.pil_resize else Image.fromarray(decode(data))
        return augment(image, self.size, rng, flip=self.flip_sides or not mentions_sides(text))


@dataclass(frozen=True)
class TextSample:
    """make_sample of retrieval, and what the samples below add to.

    Returns images uint8 (3,S,S), or (2,3,S,S) for the `images` of a pair; ids, mask int64 (L,); text (str).
    """

    tokenizer: PreTrainedTokenizerFast
    transform: ImageTransform
    max_text: int
    images: int = 1

    def __call__(self, sample: Sample, field: str, number: int, rng: np.random.Generator) -> dict[str, Any]:
        text = annotation_text(sample.record, field, number)
        if len(sample.images) < self.images:
            raise SampleFault("missing_image", f"{self.images} images are asked for, it has {len(sample.images)}")
        images = [self.transform(data, text, rng) for _, data in sample.images[: self.images]]
        ids, mask = encode(self.tokenizer, text, self.max_text)
        return {
            "images": images[0] if self.images == 1 else torch.stack(images),
            "ids": ids,
            "mask": mask,
            "text": text,
        }


@dataclass(frozen=True)
class EvalTextSample(TextSample):
    """For evaluation: also the annotation itself, and the image_id (str) of its record as `image`."""

    def __call__(self, sample: Sample, field: str, number: int, rng: np.random.Generator) -> dict[str, Any]:
        made = super().__call__(sample, field, number, rng)
        return made | {"annotation": annotation(sample.record, field, number), "image": sample.record["image_id"]}
