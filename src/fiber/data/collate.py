"""Samples into batches: a collate for fields of fixed shapes, and the sample of stage-1 pre-training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fiber.data.records import Sample, annotation_text
from fiber.data.text import encode, mask_tokens
from fiber.data.transforms import load_image
from fiber.data.workers import stack


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Tensors and arrays of one shape are stacked, numbers and booleans become a tensor (B,), the rest a list.

    Raises ValueError naming the field where shapes differ: such a task brings its own collate.
    """
    batch: dict[str, Any] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if isinstance(values[0], np.ndarray):
            values = [torch.from_numpy(value) for value in values]
        if isinstance(values[0], Tensor):
            shapes = {tuple(value.shape) for value in values}
            if len(shapes) > 1:
                raise ValueError(f"{name} has the shapes {sorted(shapes)} in one batch: write a collate that pads it")
            batch[name] = stack(values)
        elif isinstance(values[0], (bool, int, float)):
            batch[name] = torch.tensor(values)
        else:
            batch[name] = values
    return batch


class PretrainSample:
    """make_sample of stage-1 pre-training and retrieval: one picture and one of its texts.

    Returns images uint8 (3, S, S) (plain resize), ids, mask, masked_ids, mlm_labels int64 (L,) and text (str).
    `exact` resizes with Pillow instead of on tensors; the values differ by a grey level or two.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_size: int,
        max_text: int,
        mask_probability: float = 0.15,
        exact: bool = False,
    ):
        self.tokenizer, self.image_size, self.max_text = tokenizer, image_size, max_text
        self.mask_probability, self.exact = mask_probability, exact
        self.special = np.array(sorted(set(tokenizer.all_special_ids)), dtype=np.int64)

    def __call__(self, sample: Sample, field: str, annotation: int, rng: np.random.Generator) -> dict[str, Any]:
        text = annotation_text(sample.record, field, annotation)
        ids, mask = encode(self.tokenizer, text, self.max_text)
        vocab, mask_id = len(self.tokenizer), self.tokenizer.mask_token_id
        masked_ids, labels = mask_tokens(ids, self.special, vocab, mask_id, rng, self.mask_probability)
        return {
            "images": load_image(sample.images[0][1], self.image_size, self.exact),
            "ids": ids,
            "mask": mask,
            "masked_ids": masked_ids,
            "mlm_labels": labels,
            "text": text,
        }
