"""FIBER: coarse-to-fine vision-language pre-training with fusion in the backbone (Dou et al., 2022)."""

from fiber.predict import load

__all__ = ["load"]
