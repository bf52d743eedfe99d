"""Images as evaluations at region level read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fiber.config.stage2 import Stage2Config
from fiber.data.records import Sample
from fiber.data.samples.images import read_image
from fiber.evaluation.loader import check_record
from fiber.evaluation.multi_scale import MultiScale, Scale
from fiber.fine.inference import fit


@dataclass(frozen=True)
class EvalImage:
    """make_sample of evaluation: the whole image with its short side at `short`, its long side at most `longest`
    (px), uint8 (3,h,w), and its record. With `multi_scale` the image as it is stored, which `predict` resizes."""

    short: int
    longest: int
    multi_scale: MultiScale | None = None

    @classmethod
    def of(cls, config: Stage2Config) -> EvalImage:
        """As the run's configuration says."""
        side, longest = config.regions.test_side, config.regions.max_side
        if config.eval.scales:
            return cls(side, longest, MultiScale(tuple(map(Scale, config.eval.scales)), longest))
        return cls(side, longest, MultiScale() if config.eval.multi_scale else None)

    def __call__(self, sample: Sample, field: str, annotation: int, rng: np.random.Generator) -> dict[str, Any]:
        """Raises SampleFault."""
        check_record(sample, field)
        pixels = read_image(sample)
        if self.multi_scale is None:
            image = fit(pixels, self.short, self.longest)
        else:
            image = torch.tensor(pixels).permute(2, 0, 1)
        return {"image": image, "record": sample.record}


def as_list(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of images of any sizes."""
    return {"samples": samples}
