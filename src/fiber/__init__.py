"""FIBER: coarse-to-fine vision-language pre-training with fusion in the backbone (Dou et al., 2022)."""

from fiber.predict import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]
