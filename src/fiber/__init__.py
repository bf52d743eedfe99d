"""FIBER: coarse-to-fine vision-language pre-training with fusion in the backbone (Dou et al., 2022)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fiber.predict.base import Predictor


def load(path_or_hub_id: str, device: "str | torch.device | None" = None, dtype: str = "fp32") -> "Predictor":
    """A model ready for use from an export folder, a run directory or a hub id; see `fiber.predict.image.load`."""
    from fiber.predict import image as predict  # heavy: only when a model is wanted

    return predict.load(path_or_hub_id, device, dtype)
