"""The sample of stage-1 pre-training."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from fiber.data.records import Sample, annotation_text
from fiber.data.text import encode, mask_tokens
from fiber.images.resize import load_image


class PretrainSample:
    """make_sample of stage-1 pre-training and retrieval: one image and one of its texts.

    Returns images uint8 (3, S, S) (plain resize), ids, mask, masked_ids, mlm_labels int64 (L,) and text (str).
    `pil_resize` resizes with Pillow instead of on tensors; the values differ by a grey level or two.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_size: int,
        max_text: int,
        mask_probability: float = 0.15,
        pil_resize: bool = False,
    ):
        self.tokenizer, self.image_size, self.max_text = tokenizer, image_size, max_text
        self.mask_probability, self.pil_resize = mask_probability, pil_resize
        self.special = np.array(sorted(set(tokenizer.all_special_ids)), dtype=np.int64)

    def __call__(self, sample: Sample, field: str, annotation: int, rng: np.random.Generator) -> dict[str, Any]:
        text = annotation_text(sample.record, field, annotation)
        ids, mask = encode(self.tokenizer, text, self.max_text)
        vocab, mask_id = len(self.tokenizer), self.tokenizer.mask_token_id
        masked_ids, labels = mask_tokens(ids, self.special, vocab, mask_id, rng, self.mask_probability)
        return {
            "images": load_image(sample.images[0][1], self.image_size, self.pil_resize),
            "ids": ids,
            "mask": mask,
            "masked_ids": masked_ids,
            "mlm_labels": labels,
            "text": text,
        }
